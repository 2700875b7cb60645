"""COSEE (He et al., AAAI 2025, arXiv 2412.13236): train each classifier on the rows that will exit there.

Training, everything together. At each step K random thresholds on the exit signals give the layer m* at which each row
would exit; its cross-entropy at layer m then has the weight ``softmax_m(-beta_t * |m - m*|)``, averaged over the
thresholds, with beta_t growing linearly from 0 (section 3.2). A hinge at every layer but the last keeps the mean signal
of easy rows (answered correctly there) a margin below that of hard rows (section 3.3).

Rule: exit if the signal, the energy ``sigmoid(-logsumexp)`` (section 3.5), is below a threshold.

Choices: the paper's other signals, entropy and largest probability, are left out. beta_0 and alpha, which it tunes for
each task, are fixed within its ranges. The hinge is 0 if a layer answers all rows of a batch correctly, or all wrongly.
Thresholds are drawn between the smallest and the largest signal of the batch, not of the epoch before, so that training
resumes exactly.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

import consistentee as ee
from consistentee.signals import even_log_odds
from consistentee.training import TokenBatch, layer_losses, run_stage, steps_of, token_stage, training_source


def normalised_energy(logits: Tensor) -> Tensor:
    """Compute ``sigmoid(-logsumexp(logits))``: [..., classes] -> [...], high if unsure."""
    return (-logits.logsumexp(dim=-1)).sigmoid()


@dataclass(frozen=True)
class COSEE(ee.Method):
    """Training that weighs rows by where they would exit, threshold rule on the same signal.

    Attributes:
        thresholds: K, drawn at each step.
        sharpness: beta_0, the concentration of the weights around the exit at the end of training.
        ranking: alpha, the weight of the hinge.
        margin: epsilon of the hinge.
    """

    name: ClassVar[str] = "cosee"
    paper: ClassVar[str] = "He et al., COSEE, AAAI 2025, arXiv 2412.13236"
    knob: ClassVar[ee.Knob] = ee.Knob("signal", (1.001, *even_log_odds(6, -14, 161), 0.0))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"thresholds": ("sharpness", 0), "margin": ("ranking", 0)}

    thresholds: PositiveInt = 5
    sharpness: NonNegativeFloat = 1.0
    ranking: NonNegativeFloat = 0.1
    margin: NonNegativeFloat = 0.3

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        loss = partial(consistency_oriented_loss, self, steps_of(source, recipe))
        stage = token_stage("consistency-oriented", loss, recipe, stage_key=self.parameters)
        run_stage(model, source, stage, recipe)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(lambda view: normalised_energy(view.logits), knob, exit_when="below")


def consistency_oriented_loss(method: COSEE, total_steps: int, model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    """Compute the losses weighted by where rows would exit, plus the ranking loss; scalar (section 3)."""
    logits = model(batch.tokens).logits
    losses = layer_losses(logits, batch.labels)
    signals = normalised_energy(logits)
    low, high = signals.detach().aminmax()
    drawn = low + (high - low) * torch.rand(method.thresholds).to(signals.device)
    exits = simulated_exits(signals, drawn)
    weights = exit_weights(exits, logits.shape[1], method.sharpness * batch.step / total_steps)
    correct = logits.argmax(dim=-1) == batch.labels.unsqueeze(1)
    return (weights * losses).sum(dim=1).mean() + method.ranking * ranking_loss(signals, correct, method.margin)


def simulated_exits(signals: Tensor, thresholds: Tensor) -> Tensor:
    """Compute the layer (from 1) at which each row would exit with each of K thresholds: int64 [K, rows].

    Signals [rows, L] are low if a layer is confident.
    """
    wants_out = signals.detach() < thresholds.view(-1, 1, 1)
    wants_out[..., -1] = True
    return wants_out.int().argmax(dim=-1) + 1


def exit_weights(exits: Tensor, num_layers: int, sharpness: float) -> Tensor:
    """Compute the weight of each row's loss at each layer, averaged over thresholds: float [rows, L], rows sum to 1.

    ``exits`` are m*, int64 [K, rows]; ``sharpness`` is beta_t, and 0 gives all layers the same weight.
    """
    layers = torch.arange(1, num_layers + 1, device=exits.device)
    distance = (layers - exits.unsqueeze(-1)).abs()
    return (-sharpness * distance).softmax(dim=-1).mean(dim=0)


def ranking_loss(signals: Tensor, correct: Tensor, margin: float) -> Tensor:
    """Compute ``max(0, mean signal of easy rows - mean of hard rows + margin)``, averaged over layers 1..L-1.

    Rows that a layer answers correctly, bool [rows, L], are easy; the others are hard.
    """
    signals, easy = signals[:, :-1], correct[:, :-1].to(signals.dtype)
    hard = 1 - easy
    easy_rows, hard_rows = easy.sum(dim=0), hard.sum(dim=0)
    gap = (signals * easy).sum(dim=0) / easy_rows.clamp_min(1) - (signals * hard).sum(dim=0) / hard_rows.clamp_min(1)
    comparable = (easy_rows > 0) & (hard_rows > 0)
    return ((gap + margin).clamp_min(0) * comparable).mean()
