"""Cascades: a companion before the full model, as the engine sees them; and CascadeBERT, which trains one."""

import pytest
import torch
from transformers import AlbertConfig, AutoModel

from baselines.cascade_bert import CascadeBERT, difficulty_loss
from benchmarks.measure.flops import FlopModel
from benchmarks.testing.tiny import FAMILIES, random_texts
from consistentee.backbones.cascade import first_layers
from consistentee.backbones.encoders import stepper_for
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.models.encoder.cascade import add_companion
from consistentee.models.encoder.multi_exit_model import MultiExitModel

DEPTH, COMPANION = 4, 2


@pytest.fixture
def cascade(tiny_model) -> MultiExitModel:
    """Return a model with a companion of 2 layers."""
    model = tiny_model(pooling="cls", pooler="none")
    add_companion(model, model.first_layers(COMPANION, seed=5))
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_companions_and_then_the_models(tiny_model, family):
    model, full = tiny_model(family), tiny_model(family)
    companion = model.first_layers(COMPANION, seed=5)
    for weight in companion.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(11)))  # as if fine-tuned
    batch = model.collate(model.tokenize(random_texts(9, pairs=True)))
    first, second = companion(batch), full(batch)
    add_companion(model, companion)
    assert (model.num_layers, model.stock_layers, model.companion_layers) == (COMPANION + DEPTH, DEPTH, COMPANION)
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
        add_companion(model, tiny_model().first_layers(COMPANION))
    assert (model.companion_layers, model.num_layers) == (0, DEPTH)


def test_difficulty_loss_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]).log()
    one_hard, one_easy, all_hard = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    assert difficulty_loss(logits, one_hard, 0.5).item() == pytest.approx((0.3 + 0.6) / 2)
    assert difficulty_loss(logits, one_hard, 0.1).item() == pytest.approx(0.2 / 2)
    assert difficulty_loss(logits, one_easy, 0.5).item() == pytest.approx((0.2 + 0.3) / 2)
    assert difficulty_loss(logits, all_hard, 0.5).item() == 0, "there is no pair"


def test_flops_of_both_outcomes_are_the_closed_formula(cascade):
    """Two operations a multiply-add: four projections, scores and mixing of the attention, two dense layers."""
    flops, rule = FlopModel(cascade), CascadeBERT().rule(cascade, 0.5)
    n, width, inner, classifier = 10, 32, 64, 2 * 32 * 3
    layer = 4 * 2 * n * width**2 + 2 * 2 * n * n * width + 2 * 2 * n * width * inner
    small = COMPANION * layer + classifier
    found = flops.row_flops([n, n], [COMPANION, COMPANION + DEPTH], rule)
    assert found.tolist() == [small, small + DEPTH * layer + classifier]
    assert flops.full_flops([n]).tolist() == [DEPTH * layer + classifier]
