"""Shorter models, cut from their model, fine-tuned or distilled; and cascades, which run one before the full model."""

import pytest
import torch
from classifiers_on_disk import save_classifier
from comparing import changed_parts, same_weights
from records_by_hand import cell_spec
from transformers import AlbertConfig, AutoModel

from baselines.cascade_bert import CascadeBERT, difficulty_loss
from baselines.cut import Cut, CutDistilled, label_and_answer_loss
from baselines.references import Full
from benchmarks.kinds.classification import Classification
from benchmarks.measure.flops import FlopModel
from benchmarks.testing.cases import RECIPE
from benchmarks.testing.tiny import FAMILIES, make_task, make_tokenizer, random_texts
from benchmarks.testing.watching import watched_calls
from consistentee import MultiExitModel, NeverExit, UserError, add_companion, classify, training
from consistentee.backbones.cascade import first_layers
from consistentee.backbones.encoders import stepper_for
from consistentee.models.classifiers import RecordedLayer
from consistentee.training.loop import logged_training

LAYERS, DEPTH = 4, 2
TASK = make_task()
TRAINED_ROWS = RECIPE.epochs * len(TASK.train)
N, WIDTH, INNER = 10, 32, 64
LAYER_FLOPS = 4 * 2 * N * WIDTH**2 + 2 * 2 * N * N * WIDTH + 2 * 2 * N * WIDTH * INNER
"""Two operations a multiply-add: four projections, scores and mixing of the attention, two dense layers."""
ANSWER_FLOPS = 2 * WIDTH * 3


@pytest.fixture
def model(tiny_backbone) -> MultiExitModel:
    return MultiExitModel.from_backbone(str(tiny_backbone("bert")), TASK.num_labels)


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_first_layers_answer_as_a_stock_model_with_as_many_layers(tiny_model, tiny_backbone, family):
    whole = tiny_model(family)
    model = whole.first_layers(DEPTH)
    assert not {w.data_ptr() for w in model.parameters()} & {w.data_ptr() for w in whole.parameters()}
    groups = {"num_hidden_groups": 1} if family == "albert" else {}  # layers 1 and 2 of its 4 share their weights
    stock = AutoModel.from_pretrained(tiny_backbone(family), num_hidden_layers=DEPTH, **groups)
    batch = model.collate(model.tokenize(random_texts(9, pairs=True)))
    with torch.no_grad():
        hidden = stock(**batch.model_inputs).last_hidden_state
        pooled = model.pool(DEPTH, hidden, batch.padding_mask)
        expected = model.classifier(DEPTH)(RecordedLayer(pooled.unsqueeze(1)))
        torch.testing.assert_close(model.stock_logits(batch), expected)
        torch.testing.assert_close(model(batch).logits[:, -1], expected)


def test_first_layers_of_a_kept_head_are_a_plain_model_and_those_of_int8_are_refused(tmp_path):
    whole = MultiExitModel.from_classifier(str(save_classifier(tmp_path)))
    short = whole.first_layers(DEPTH)
    assert not short.description.keeps_head
    assert short.num_layers == DEPTH
    assert classify(short, random_texts(3), NeverExit()).logits.shape == (3, 3)
    with pytest.raises(UserError, match="int8"):
        whole.quantized(whole.tokenize(random_texts(8))).first_layers(DEPTH)


def test_a_cut_model_equals_a_stock_model_with_as_many_layers_and_runs_none_above(model, tiny_backbone, tmp_path):
    """Both are trained alike."""
    AutoModel.from_pretrained(tiny_backbone("bert"), num_hidden_layers=DEPTH).save_pretrained(tmp_path)
    make_tokenizer(uses_token_types=True).save_pretrained(tmp_path)
    stock = MultiExitModel.from_backbone(str(tmp_path), TASK.num_labels, seed=RECIPE.seed)
    before = model.clone_weights()
    with (
        watched_calls((module, lambda *_: pytest.fail("the full model ran")) for module in model.modules()),
        logged_training() as log,
    ):
        short = Cut(depth=DEPTH).fit(model, TASK, RECIPE)
        answers = classify(short, random_texts(5), Cut().rule(short, DEPTH))
    assert same_weights(Full().fit(stock, TASK, RECIPE), short)
    assert answers.layers_run.tolist() == [DEPTH] * 5
    assert (short.num_layers, len(short.backbone.encoder.layer), short.stock_layers) == (DEPTH, DEPTH, LAYERS)
    assert all(weight.grad is None for weight in model.parameters())
    assert not changed_parts(model, before)
    assert log.rows == pytest.approx(DEPTH / LAYERS * TRAINED_ROWS)


@pytest.mark.parametrize("classifier", ["linear", "attention"])
def test_distillation_starts_from_fine_tuned_layers_and_trains_only_them(model, tiny_backbone, monkeypatch, classifier):
    full = Full().fit(MultiExitModel.from_backbone(str(tiny_backbone("bert")), TASK.num_labels), TASK, RECIPE)
    own, run_stage = full.state_dict(), training.run_stage
    starts = []

    def watched(short: MultiExitModel, source, stage, recipe) -> None:
        tokens = source.batch(torch.arange(len(source)), step=0).tokens
        torch.testing.assert_close(stage.stage_key["answers"], full.stock_logits(tokens), rtol=1e-4, atol=1e-5)
        starts.append(short.clone_weights())
        run_stage(short, source, stage, recipe)

    monkeypatch.setattr(training, "run_stage", watched)
    with logged_training() as log:
        short = CutDistilled(depth=DEPTH, classifier=classifier).fit(model, TASK, RECIPE)
    assert short.description.classifier.kind == classifier
    layers = [name for name in starts[0] if name.startswith("backbone.")]
    assert all(torch.equal(starts[0][name], own[name]) for name in layers)
    assert not any(torch.equal(starts[0][name], short.state_dict()[name]) for name in layers if "query" in name)
    assert all(torch.equal(own[name], weight) for name, weight in model.state_dict().items())
    assert list(short.description.validation_by_epoch) == ["last-exit", "distillation"]
    assert log.rows == pytest.approx((1 + 1 / 3 + DEPTH / LAYERS) * TRAINED_ROWS), "full model, its answers, cut model"


def test_the_loss_is_half_cross_entropy_and_half_distillation(model):
    batch = training.training_source(model, TASK, RECIPE).batch(torch.tensor([3, 0, 5]), step=0)
    answers = torch.randn(len(TASK.train), TASK.num_labels, generator=torch.Generator().manual_seed(0))
    logits = model.stock_logits(batch.tokens)
    teacher, student = ((one / 3.0).softmax(dim=-1) for one in (answers[[3, 0, 5]], logits))
    divergence = (teacher * (teacher / student).log()).sum(dim=-1).mean()
    expected = (torch.nn.functional.cross_entropy(logits, batch.labels) + 9 * divergence) / 2
    torch.testing.assert_close(label_and_answer_loss(answers, 3.0, model, batch), expected)


def test_a_saved_cut_model_knows_the_stock_models_layers_and_is_not_timed_as_stock(model, tiny_backbone, tmp_path):
    model.first_layers(DEPTH).save_pretrained(tmp_path)
    loaded = MultiExitModel.from_pretrained(tmp_path)
    assert (loaded.num_layers, loaded.stock_layers) == (DEPTH, LAYERS)
    assert FlopModel(loaded).full_flops([3, N]).tolist() == FlopModel(model).full_flops([3, N]).tolist()
    pooler = 2 * WIDTH**2
    found = FlopModel(loaded).row_flops([N], [DEPTH], NeverExit())
    assert found.tolist() == [DEPTH * LAYER_FLOPS + pooler + ANSWER_FLOPS]
    specs = [cell_spec(method=name, backbone=str(tiny_backbone("bert"))) for name in ("cut", "deebert")]
    assert Classification().stock_model(specs, [loaded, model]) is model
    assert Classification().stock_model(specs[:1], [loaded]).num_layers == LAYERS


def test_a_cut_that_keeps_every_layer_is_refused(model):
    with pytest.raises(UserError, match="fewer than its model's 4"):
        Cut(depth=LAYERS).fit(model, TASK, RECIPE)


@pytest.fixture
def cascade(tiny_model) -> MultiExitModel:
    """Return a model with a companion of 2 layers."""
    model = tiny_model(pooling="cls", pooler="none")
    add_companion(model, model.first_layers(DEPTH, seed=5))
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_companions_and_then_the_models(tiny_model, family):
    model, full = tiny_model(family), tiny_model(family)
    companion = model.first_layers(DEPTH, seed=5)
    for weight in companion.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(11)))  # as if fine-tuned
    batch = model.collate(model.tokenize(random_texts(9, pairs=True)))
    first, second = companion(batch), full(batch)
    add_companion(model, companion)
    assert (model.num_layers, model.stock_layers, model.companion_layers) == (DEPTH + LAYERS, LAYERS, DEPTH)
    for name in ("vectors", "pooled", "logits"):
        expected = torch.cat([getattr(first, name), getattr(second, name)], dim=1)
        torch.testing.assert_close(getattr(model(batch), name), expected, rtol=1e-5, atol=1e-5)


def test_albert_companions_share_weights_as_their_model_does(tiny_model):
    changes = {"num_hidden_layers": 6, "num_hidden_groups": 2}
    config = AlbertConfig(**(tiny_model("albert").backbone.config.to_dict() | changes))
    stepper = stepper_for(AutoModel.from_config(config))
    for layers, groups in ((2, 1), (3, 1), (5, 2)):
        short = stepper_for(first_layers(stepper, layers))
        assert short.config.num_hidden_groups == groups
        for layer in range(1, layers + 1):
            mine, its = (s.layer_module(layer).state_dict() for s in (stepper, short))
            assert all(torch.equal(mine[name], its[name]) for name in mine)
    with pytest.raises(UserError, match="first 4 layers"):
        first_layers(stepper, 4)  # no stock model shares their weights in this way


def test_a_batch_that_the_companion_empties_runs_nothing_of_the_full_backbone(cascade):
    for module in cascade.backbone.modules():
        module.register_forward_hook(lambda *_: pytest.fail("it ran"))
    classify(cascade, random_texts(20), CascadeBERT().rule(cascade, 0.0), batch_size=7)


def test_a_companion_of_another_model_is_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(UserError, match=r"by first_layers\(\)"):
        add_companion(model, tiny_model().first_layers(DEPTH))
    assert (model.companion_layers, model.num_layers) == (0, LAYERS)


def test_difficulty_loss_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]).log()
    one_hard, one_easy, all_hard = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    assert difficulty_loss(logits, one_hard, 0.5).item() == pytest.approx((0.3 + 0.6) / 2)
    assert difficulty_loss(logits, one_hard, 0.1).item() == pytest.approx(0.2 / 2)
    assert difficulty_loss(logits, one_easy, 0.5).item() == pytest.approx((0.2 + 0.3) / 2)
    assert difficulty_loss(logits, all_hard, 0.5).item() == 0, "there is no pair"


def test_flops_of_both_outcomes_are_the_closed_formula(cascade):
    flops, rule = FlopModel(cascade), CascadeBERT().rule(cascade, 0.5)
    small = DEPTH * LAYER_FLOPS + ANSWER_FLOPS
    full = LAYERS * LAYER_FLOPS + ANSWER_FLOPS
    assert flops.row_flops([N, N], [DEPTH, DEPTH + LAYERS], rule).tolist() == [small, small + full]
    assert flops.full_flops([N]).tolist() == [full]
