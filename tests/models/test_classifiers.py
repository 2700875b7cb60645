"""Pooling, heads, and internal classifiers of every kind: what they read, saving, FLOPs, a kind of one's own."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.references import RandomRule
from benchmarks.measure.flops import FlopModel
from benchmarks.testing.tiny import make_task
from consistentee import HeadSpec, MultiExitModel, UserError, record_trace, replay
from consistentee.engine.classify import classify, classify_encoded, stock_encoded
from consistentee.models.classifiers import (
    CLASSIFIER_ENTRY_POINT_GROUP,
    CLASSIFIER_KINDS,
    ClassifierSpec,
    ExitPlace,
    InternalClassifier,
)
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule, ThresholdRule
from consistentee.signals import entropy

WIDTH, INNER, CLASSES, LAYERS = 32, 8, 3, 4
KINDS_OF_METHODS = entry_points(group=CLASSIFIER_ENTRY_POINT_GROUP).names
SPECS = {kind: ClassifierSpec(kind, width=INNER) for kind in [*CLASSIFIER_KINDS, *sorted(KINDS_OF_METHODS), "max"]}


class MaxOfAll(InternalClassifier):
    """A kind of one's own: the largest value of every feature, over tokens and over the layers before."""

    reads_tokens = True
    reads_history = True

    def __init__(self, spec: ClassifierSpec, place: ExitPlace) -> None:
        super().__init__(spec, place)
        self.output = nn.Linear(2 * place.width, place.num_labels)

    def forward(self, layer):
        tokens = layer.hidden.masked_fill(~layer.padding_mask[:, :, None], -torch.inf).amax(dim=1)
        return self.output(torch.cat([tokens, layer.history.amax(dim=1)], dim=-1))


@pytest.fixture(params=SPECS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a kind: the project's, or "max", one of one's own that is entered in one place."""
    monkeypatch.setitem(CLASSIFIER_KINDS, "max", MaxOfAll)
    return request.param


def model_with(tiny_model, kind: str, **options) -> MultiExitModel:
    """Return a model whose classifiers have weights that matter: gates start at zero, outputs small."""
    model, generator = tiny_model(**options), torch.Generator().manual_seed(5)
    model.use_classifier(SPECS[kind], seed=1)
    with torch.no_grad():
        for parameter in model.classifiers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def test_every_kind_equals_stock_at_full_depth_and_its_trace_and_its_saved_copy(tiny_model, kind, tmp_path):
    model, task = model_with(tiny_model, kind, pooling="mean", pooler="per_exit"), make_task()
    trace, encodings = record_trace(model, task.test), model.tokenize(task.test.texts)
    never = classify_encoded(model, encodings, NeverExit(), batch_size=4).logits
    torch.testing.assert_close(never, stock_encoded(model, encodings, batch_size=4), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = MultiExitModel.from_pretrained(tmp_path / "saved")
    assert again.description == model.description
    average = entropy(trace.view(1)).mean().item()
    for rule in (RandomRule(2.5, seed=1), ThresholdRule(entropy, average, "below")):
        exits = replay(rule, trace)
        assert exits.unique().numel() > 1
        live, loaded = (classify(each, task.test.texts, rule, batch_size=7) for each in (model, again))
        assert torch.equal(live.exit_layers, exits)
        torch.testing.assert_close(live.logits, trace.logits_at(exits), rtol=1e-4, atol=1e-5)
        assert torch.equal(loaded.logits, live.logits)


def test_a_rule_must_declare_that_it_reads_history(tiny_model):
    class Undeclared(ExitRule):
        def should_exit(self, view, state):
            return view.history.mean(dim=(1, 2)) > 0

    model = tiny_model()
    with pytest.raises(UserError, match="reads_history = True"):
        classify(model, ["w1"], Undeclared())
    replay(Undeclared(), record_trace(model, make_task().test))


@pytest.mark.parametrize(
    ("kind", "pooled_at"), [("linear", [4]), ("attention", []), ("past-future", [1, 2, 3, 4])], ids=str
)
def test_layers_are_pooled_only_for_classifiers_that_read_them(tiny_model, monkeypatch, kind, pooled_at):
    model = model_with(tiny_model, kind)
    layers = []
    pool = model.pool
    monkeypatch.setattr(model, "pool", lambda layer, *rest: (layers.append(layer), pool(layer, *rest))[1])
    classify(model, ["w1"], NeverExit())
    assert layers == pooled_at
    model.stock_logits(model.collate(model.tokenize(["w1"])))
    assert layers == 2 * pooled_at, "a clock runs in the stock model too"


def test_an_impossible_classifier_is_refused(tiny_model):
    model = tiny_model()
    for spec, message in (
        (ClassifierSpec("atention"), "unknown kind of classifier 'atention'; did you mean 'attention'"),
        (ClassifierSpec("baselines.gpfee:A"), "unknown kind of classifier 'baselines.gpfee:A'"),  # only names run code
        (ClassifierSpec("attention", width=8, attention_heads=3), "width 8 cannot have 3 heads"),
    ):
        with pytest.raises(UserError, match=message):
            model.use_classifier(spec)
    assert model.description.classifier == ClassifierSpec()


def pooling_cost(n: int, pooling: str, width: int = WIDTH) -> int:
    return 2 * n * width if pooling == "mean" else 0


def linear_cost(n: int, pooling: str) -> int:
    return pooling_cost(n, pooling) + 2 * WIDTH * CLASSES


def attention_cost(n: int, pooling: str) -> int:
    """Projection, query-key-value, scores and mixing, output projection; pooled; hidden layer and output."""
    tokens = 2 * n * WIDTH * INNER + 2 * n * INNER * 3 * INNER + 2 * 2 * n * n * INNER + 2 * n * INNER * INNER
    return tokens + pooling_cost(n, pooling, INNER) + 2 * INNER * INNER + 2 * INNER * CLASSES


def past_future_cost(layer: int) -> int:
    """A gate scores and sums each state; a predictor takes one narrow layer, and a step for each layer to come."""
    later = LAYERS - layer
    gates = 2 * 2 * LAYERS * WIDTH
    predictor = 2 * WIDTH * INNER + 2 * INNER * later * WIDTH if later else 0
    return gates + predictor + 2 * WIDTH * (2 if later else 1) * CLASSES


def ensemble_cost(layer: int) -> int:
    """All heads so far say anew what they say; each but the first reads what the one before says."""
    return 2 * (layer * WIDTH + (layer - 1) * CLASSES) * CLASSES


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_flops_of_an_answer_are_the_closed_formula(tiny_model, kind, pooling):
    """Two operations a multiply-add."""
    n, flops = 10, FlopModel(model_with(tiny_model, kind, pooling=pooling, pooler="none"))
    before = sum(int(layer(n)) for layer in flops.layers[:2])
    answer = {
        "linear": linear_cost(n, pooling),
        "mlp": linear_cost(n, pooling) + 2 * WIDTH * WIDTH,
        "shared": linear_cost(n, pooling),
        "class-means": linear_cost(n, pooling),
        "attention": attention_cost(n, pooling),
        "past-future": 2 * pooling_cost(n, pooling) + past_future_cost(2),
        "ensemble": 2 * pooling_cost(n, pooling) + ensemble_cost(2),
        "product": 2 * linear_cost(n, pooling),
        "max": 2 * pooling_cost(n, pooling) + 2 * 2 * WIDTH * CLASSES,
    }
    assert flops.row_flops([n], [2], StaticRule(2)).tolist() == [before + answer[kind]]


def test_the_fingerprint_covers_the_code_of_a_users_kind(tiny_model, monkeypatch):
    monkeypatch.setitem(CLASSIFIER_KINDS, "max", MaxOfAll)
    model = tiny_model()
    model.use_classifier(ClassifierSpec("max"))
    before = model.fingerprint()
    assert MaxOfAll.source_code == Path(__file__).read_text()
    monkeypatch.setattr(MaxOfAll, "source_code", "an edit")
    assert model.fingerprint() != before


def test_heads_check_their_extra_inputs(tiny_model):
    head, pooled = tiny_model().add_head("policy", HeadSpec(extra_inputs=2, outputs=1)), torch.randn(3, WIDTH)
    assert head(1, pooled, torch.zeros(3, 2)).shape == (3,)
    with pytest.raises(ValueError, match="takes 2 extra inputs"):
        head(1, pooled)
