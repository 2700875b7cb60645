"""SWEET (Rotem et al., ACL 2023, arXiv 2306.02307): separate weights for every exit.

Training: backbone and classifiers together, on the mean cross-entropy of the exits. The gradient of an exit reaches
only the layers after the exit before it, so that no layer learns from two exits. Rule: exit if the largest probability
is above a threshold.

Choices: exits after 1, 4, 6 and 12 twelfths of the layers, rounded up. Classifiers of other layers are not trained and
never asked. Every exit has its own pooler. Where layers share their weights, as in ALBERT, exits share them too.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

import consistentee as ee
from consistentee.signals import even_log_odds, top_probability
from consistentee.training import TokenBatch, layer_losses, run_stage, token_stage, training_source

_TWELFTHS = (1, 4, 6, 12)


@dataclass(frozen=True)
class SWEET(ee.Method):
    """Training with separate weights for every exit, confidence rule."""

    name: ClassVar[str] = "sweet"
    paper: ClassVar[str] = "Rotem et al., Finding the SWEET Spot, ACL 2023, arXiv 2306.02307"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("confidence", (0.0, *even_log_odds(-4, 12, 121), 1.0))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        model.use_own_poolers()
        loss = partial(separate_loss, exit_layers(model))
        run_stage(model, source, token_stage("separate-weights", loss, recipe), recipe)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.SomeLayersRule(ee.ThresholdRule(top_probability, knob, exit_when="above"), *exit_layers(model))


def exit_layers(model: ee.MultiExitModel) -> tuple[int, ...]:
    """Return the layers with an exit, in increasing order; the last one is L."""
    return tuple(sorted({math.ceil(model.num_layers * part / 12) for part in _TWELFTHS}))


def separate_loss(exits: Collection[int], model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    """Compute the mean cross-entropy of the exits, without a gradient from one exit to the layers of another."""
    logits = model(batch.tokens, cut_after=exits).logits
    return layer_losses(logits, batch.labels)[:, [layer - 1 for layer in exits]].mean()
