"""NewMethod: a gate that guesses whether the classifier of a layer is right. Edit it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from consistentee import ExitRule, HeadSpec, Knob, Method, MultiExitModel, Recipe, TaskData, ThresholdRule
from consistentee.signals import head_probability
from consistentee.training import FeatureBatch, cached_rows, train_heads, train_jointly, training_source


@dataclass(frozen=True)
class NewMethod(Method):
    """Joint training, then a learned gate shared by all layers, on cached features."""

    name: ClassVar[str] = "new-method"
    paper: ClassVar[str] = "unpublished"  # authors, venue and year, for tables and cards
    # What is swept to draw the curve, from the earliest exits (every row at layer 1) to full depth.
    knob: ClassVar[Knob] = Knob("confidence", (0.0, *torch.linspace(-9, 9, 73).sigmoid().tolist(), 1.0))

    hidden: int = 32  # a parameter: `--param hidden=64` of train, `parameters:` and `grid:` of a suite

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train the model in place, and return it."""
        source = training_source(model, task, recipe)
        train_jointly(model, source, recipe)  # backbone and classifiers; the same stage of other methods is shared
        model.add_head("gate", HeadSpec(hidden=self.hidden, shared=True), seed=recipe.seed)
        rows = cached_rows(model, source, recipe)  # the backbone is frozen now: one pass is enough
        train_heads(model, rows, gate_loss, recipe, name="gate", trains=("exit_heads.gate.",))
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if the gate is surer than ``knob``. A rule of your own: subclass ExitRule."""
        return ThresholdRule(head_probability("gate"), knob, exit_when="above")


def gate_loss(model: MultiExitModel, batch: FeatureBatch) -> Tensor:
    """Binary cross-entropy of "this classifier is right". Layers count from 1, tensors from 0."""
    gate, pooled = model.head("gate"), batch.outputs.pooled  # [rows, L, width]
    guess = torch.stack([gate(layer, pooled[:, layer - 1]) for layer in range(1, model.num_layers + 1)], dim=1)
    right = (batch.outputs.logits.argmax(dim=-1) == batch.labels.unsqueeze(1)).float()  # [rows, L]
    return functional.binary_cross_entropy_with_logits(guess, right)
