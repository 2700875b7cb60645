"""EENet (Ilhan et al., WACV 2024, arXiv 2301.07099): a scheduler fitted to a budget decides how many rows exit where.

Training: backbone and all exits together, on ``sum_t t * CE_t / sum_t t``; over the last quarter of the steps each exit
also learns from the last one, ``0.01 T^2 KL(exit L || exit t) / sum_t t`` with T = 3. Then the scheduler, on held-out
rows. At exit k it reads the probabilities, the largest of them, ``1 - entropy / ln C`` and the scores of earlier exits.
A linear layer gives the score ``q_k``, cut to 0..1; another network gives the row's share ``pi_k``, a softmax over
exits. Scores learn whether the exit is right, on rows weighted by pi_k. Shares learn to prefer exits with good scores,
close to ``q / sum q``, at a mean cost near the budget. T_k is the N_k-th largest score of the remaining rows,
``N_k = floor(N * mean pi_k)``. Rule: exit if the score is at least T_k.

Choices. The authors' code defines the method; its exits are after every third layer, here after every layer, with a
pooler each if the backbone has one. The scheduler is fitted on a tenth of the training rows, held out, not on
validation rows. The budget is a parameter; the knob shifts all thresholds alike, and 0 is the budget. Scores are
compared before they are cut. Scores and shares alternate twenty times. Errors of the authors' code are not repeated: a
sigmoid before the softmax, gradients that are never cleared, a teacher that learns from its students.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee import training

_SCORE, _SHARE, _THRESHOLDS = "score", "share", "thresholds"
_TEMPERATURE, _DISTILLATION = 3.0, 0.01  # T, and the weight of late self-distillation
# Weights, in the scheduler's loss, of the shares' divergence from the scores and of the distance from the budget.
_NEAR_SCORES, _ON_BUDGET = 1e-3, 1e-2
_TURNS = 20
_TINY = 1e-9
_ALWAYS = 1e6  # above any difference of a score and a threshold
_SHIFTS = tuple(10.0 ** (exponent / 12) for exponent in range(-48, 13))  # from 1e-4 to 10


@dataclass(frozen=True)
class EENet(ee.Method):
    """Joint training with late self-distillation, scores against thresholds that keep a budget.

    Attributes:
        budget: the mean layers that the thresholds are fitted to, as a share of full depth.
        held_out: fraction of the training rows on which the scheduler is fitted.
    """

    name: ClassVar[str] = "eenet"
    paper: ClassVar[str] = "Ilhan et al., EENet, WACV 2024, arXiv 2301.07099"
    knob: ClassVar[ee.Knob] = ee.Knob("shift", (-_ALWAYS, *(-shift for shift in _SHIFTS[::-1]), 0.0, *_SHIFTS, _ALWAYS))

    budget: Annotated[float, Field(gt=0, lt=1)] = 0.5
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        model.use_own_poolers()
        source, held_out = training.hold_out(training.training_source(model, task, recipe), self.held_out)
        loss = partial(_loss, training.steps_of(source, recipe))
        training.run_stage(model, source, training.token_stage("late-distillation", loss, recipe), recipe)
        self._fit_scheduler(model, held_out, recipe)
        return model

    def _fit_scheduler(self, model: ee.MultiExitModel, source: training.TokenSource, recipe: ee.Recipe) -> None:
        rows = training.cached_rows(model, source, recipe)
        inputs = model.num_labels + 2 + model.num_layers - 1
        reads = ee.HeadSpec(extra_inputs=inputs, reads_pooled=False)
        model.add_head(_SCORE, replace(reads, initial_bias=0.5), recipe.seed)  # inside 0..1
        model.add_head(_SHARE, replace(reads, hidden=2 * inputs), recipe.seed)
        turn = max(1, recipe.frozen_steps // _TURNS)
        loss, key = partial(_scheduler_loss, self.budget, turn), {"budget": self.budget, "turn": turn}
        trains = (f"exit_heads.{_SCORE}.", f"exit_heads.{_SHARE}.")
        training.train_heads(model, rows, loss, recipe, name="scheduler", trains=trains, stage_key=key)
        with torch.no_grad():
            scores, shares = (part.cpu() for part in scores_and_shares(model, rows.outputs.logits.to(model.device)))
        del model.exit_heads[_SHARE], model.description.heads[_SHARE]  # only the thresholds are needed from here on
        thresholds = fit_thresholds(scores, shares.mean(dim=0))
        model.add_factors(_THRESHOLDS, functional.pad(thresholds, (0, 1)))

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return BudgetRule([threshold + knob for threshold in model.factors(_THRESHOLDS)])


class BudgetRule(ee.ExitRule):
    """Exit if a score, which depends on the scores of earlier layers, is at least the layer's threshold."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = thresholds

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"scores": torch.zeros(rows, num_layers - 1)}

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        score = view.head(_SCORE, torch.cat([_exit_features(view.probs), state["scores"]], dim=-1))
        state["scores"] = state["scores"].clone()
        state["scores"][:, view.layer - 1] = score.clamp(0, 1)
        return score >= self.thresholds[view.layer - 1]


def _exit_features(probs: Tensor) -> Tensor:
    certainty = 1 - torch.special.entr(probs).sum(dim=-1) / math.log(probs.shape[-1])
    return torch.cat([probs, probs.amax(dim=-1, keepdim=True), certainty.unsqueeze(-1)], dim=-1)


def scores_and_shares(model: ee.MultiExitModel, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scores before they are cut, and shares that sum to 1: each [rows, L], of logits [rows, L, classes].

    A score reaches later exits without its gradient. At an exit, its own score and later ones are 0.
    """
    score_head, share_head = model.head(_SCORE), model.head(_SHARE)
    rows, layers, _ = logits.shape
    before, no_state = logits.new_zeros(rows, layers - 1), logits.new_empty(rows, 0)
    scores, shares = [], []
    for layer in range(1, layers + 1):
        read = torch.cat([_exit_features(logits[:, layer - 1].softmax(dim=-1)), before], dim=-1)
        scores.append(score_head(layer, no_state, read))
        shares.append(share_head(layer, no_state, read))
        if layer < layers:
            before = before.clone()
            before[:, layer - 1] = scores[-1].detach().clamp(0, 1)
    return torch.stack(scores, dim=1), torch.stack(shares, dim=1).softmax(dim=1)


def fit_thresholds(scores: Tensor, shares: Tensor) -> Tensor:
    """Compute thresholds with which ``floor(N * share)`` rows exit at each layer: float [L - 1].

    Rows of equal scores [N, L] exit together, so that a later layer may get fewer than its share.
    """
    stays = torch.ones(len(scores), dtype=torch.bool)
    thresholds = []
    for score, share in zip(scores.T[:-1], shares[:-1].tolist(), strict=True):
        ranked = score[stays].sort(descending=True).values
        exiting = min(math.floor(len(scores) * share), len(ranked))
        threshold = ranked[exiting - 1] if exiting else score.max() + 1e-3  # no row exits
        stays &= score < threshold
        thresholds.append(threshold)
    return torch.stack(thresholds)


def _loss(total_steps: int, model: ee.MultiExitModel, batch: training.TokenBatch) -> Tensor:
    logits = model(batch.tokens).logits
    loss = training.depth_weighted_loss(training.layer_losses(logits, batch.labels))
    if batch.step < 0.75 * total_steps:
        return loss
    layers = logits.shape[1]  # divided by the sum of depths, as the loss above
    return loss + _DISTILLATION * training.distillation_loss(logits, _TEMPERATURE) / (layers * (layers + 1) / 2)


def _scheduler_loss(budget: float, turn: int, model: ee.MultiExitModel, batch: training.FeatureBatch) -> Tensor:
    logits = batch.outputs.logits
    raw, shares = scores_and_shares(model, logits)
    scores = raw.clamp(0, 1)
    if batch.step // turn % 2:
        scores = scores.detach()
    else:
        shares = shares.detach()
    right = (logits.argmax(dim=-1) == batch.labels.unsqueeze(1)).to(scores.dtype)
    errors = functional.binary_cross_entropy(scores, right, reduction="none")
    fit = (errors * shares / shares.sum(dim=0).clamp_min(_TINY)).sum()
    wanted = scores.clamp_min(_TINY) / scores.clamp_min(_TINY).sum(dim=1, keepdim=True)
    gap = (wanted * (wanted.log() - shares.clamp_min(_TINY).log())).sum(dim=1).mean()
    costs = torch.arange(1, logits.shape[1] + 1, device=shares.device) / logits.shape[1]
    missed = ((shares * costs).sum(dim=1).mean() - budget).abs() / budget
    return fit + _NEAR_SCORES * gap + _ON_BUDGET * missed
