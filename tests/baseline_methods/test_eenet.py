"""EENet: thresholds that let the right numbers out, a scheduler that keeps its budget, and the parts of its losses."""

import math

import pytest
import torch

from baselines.eenet import BudgetRule, fit_thresholds, scores_and_shares
from consistentee.models.heads import HeadSpec
from consistentee.traces.instance_trace import Trace
from consistentee.training.recipe import Recipe

RECIPE = Recipe(
    epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1, frozen_steps=250
)


def test_thresholds_let_out_as_many_rows_as_their_shares_say():
    scores = torch.rand(103, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.2, 0.0, 0.5, 0.3])
    thresholds = fit_thresholds(scores, shares)
    exits = torch.full((103,), 4)
    for row in range(103):
        for layer in (1, 2, 3):
            if scores[row, layer - 1] >= thresholds[layer - 1]:
                exits[row] = layer
                break
    assert [(exits == layer).sum().item() for layer in (1, 2, 3, 4)] == [20, 0, 51, 32]


def test_the_largest_scores_exit_first_and_equal_ones_together():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.8, 0.9], [0.1, 0.2]])
    assert fit_thresholds(scores, torch.tensor([0.5, 0.5])).item() == pytest.approx(0.8)
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.8], [0.5, 0.7], [0.1, 0.6], [0.1, 0.2]])
    scores = torch.cat([scores, torch.zeros(5, 1)], dim=1)
    assert fit_thresholds(scores, torch.tensor([0.2, 0.8, 0.0])).tolist() == pytest.approx([0.5, 0.2])


def test_the_rule_gives_the_scores_that_the_thresholds_were_fitted_to(tiny_model):
    model = tiny_model()
    for name in ("score", "share"):
        model.add_head(name, HeadSpec(extra_inputs=3 + 2 + 3, reads_pooled=False), seed=3)
    logits = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(2))
    scores, shares = scores_and_shares(model, logits)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
    lengths, pooled = torch.ones(6, dtype=torch.long), torch.zeros(6, 4, model.width)
    trace = Trace(logits, torch.zeros(6), {"pooled": pooled}, lengths, lengths, {"score": model.head("score")})
    rule = BudgetRule([math.inf] * 4)
    state = rule.start(6, 4)
    asked = torch.stack([rule.score(trace.view(layer), state) for layer in (1, 2, 3)], dim=1)
    torch.testing.assert_close(asked, scores[:, :3])
