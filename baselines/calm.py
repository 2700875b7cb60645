"""CALM's three confidences (Schuster et al., NeurIPS 2022, arXiv 2207.07061), for encoders.

Training (section 3.4): backbone and all classifiers together, weights growing with depth. Rules (section 3.5): leave
where a confidence is at least lambda; written here as "above", which differs on a set of measure zero:

* softmax: the difference of the two largest probabilities;
* state: the cosine of the states of two successive layers, which saturates before the answer is final;
* classifier: a linear layer shared by all exits, fitted to "this classifier says what the last one says" with the rest
  of the model frozen (section 3.5), on features that the frozen model left once.

For classification the state is the pooled vector. CALM's decoders are another matter: what is exited there is a token.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.instances import TaskData
from consistentee.methods.method import Knob, Method
from consistentee.models.encoder import MultiExitModel
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule, State, ThresholdRule
from consistentee.rules.signals import head_probability, margin
from consistentee.rules.view import LayerView
from consistentee.training.loop import FeatureBatch, FeatureSource
from consistentee.training.recipe import Recipe
from consistentee.training.stages import (
    recorded_features,
    train_heads,
    train_jointly,
    train_jointly_on,
    training_source,
)

_CONFIDENCE = "confidence"
_PAPER = "Schuster et al., CALM, NeurIPS 2022, arXiv 2207.07061"
_LAMBDAS = (-1.0, *torch.linspace(-9, 9, 73).sigmoid().tolist(), 1.0)


@dataclass(frozen=True)
class _CALM(Method):
    """Joint training, shared by the three."""

    paper: ClassVar[str] = _PAPER
    knob: ClassVar[Knob] = Knob("lambda", _LAMBDAS)

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train backbone and all classifiers on the depth-weighted loss."""
        self.check_task(task)
        train_jointly(model, task, recipe)
        return model


@dataclass(frozen=True)
class CALMSoftmax(_CALM):
    """Leave where the two largest probabilities are far apart."""

    name: ClassVar[str] = "calm-softmax"

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the margin is above ``knob``."""
        self.check_knob(model, knob)
        return ThresholdRule(margin, knob, exit_when="above")


class SaturationRule(ExitRule):
    """Exit where the pooled vectors of this layer and the one before point the same way; from layer 2 on."""

    def __init__(self, threshold: float, width: int) -> None:
        self.threshold = threshold
        self.width = width

    def start(self, rows: int, num_layers: int) -> State:
        """No state yet."""
        return {"previous": torch.zeros(rows, self.width)}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare the cosine with the threshold."""
        cosine = functional.cosine_similarity(view.pooled, state["previous"], dim=-1)
        state["previous"] = view.pooled
        return (cosine > self.threshold) & (view.layer > 1)


@dataclass(frozen=True)
class CALMState(_CALM):
    """Leave where the state has stopped moving."""

    name: ClassVar[str] = "calm-state"
    knob: ClassVar[Knob] = Knob("lambda", (-1.01, *torch.linspace(-3, 9, 73).sigmoid().tolist(), 1.01))

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the cosine of successive states is above ``knob``."""
        self.check_knob(model, knob)
        return SaturationRule(knob, model.width)


@dataclass(frozen=True)
class CALMClassifier(_CALM):
    """Leave where a learned head expects the last classifier to agree."""

    name: ClassVar[str] = "calm-classifier"

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train as the others, then the confidence head on what the frozen model says."""
        self.check_task(task)
        source = training_source(model, task, recipe)
        train_jointly_on(model, source, recipe)
        model.add_head(_CONFIDENCE, HeadSpec(shared=True), seed=recipe.seed)
        outputs = recorded_features(model, source, recipe)
        trains = (f"exit_heads.{_CONFIDENCE}.",)
        rows = FeatureSource(model, outputs, source.labels.tolist())
        train_heads(model, rows, _agreement_loss, recipe, name="confidence", trains=trains)
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the head's probability of agreement is above ``knob``."""
        self.check_knob(model, knob)
        return ThresholdRule(head_probability(_CONFIDENCE), knob, exit_when="above")


def _agreement_loss(model: MultiExitModel, batch: FeatureBatch) -> Tensor:
    head = model.head(_CONFIDENCE)
    before_last = range(model.num_layers - 1)
    guess = torch.stack([head(i + 1, batch.outputs.pooled[:, i]) for i in before_last], dim=1)
    answers = batch.outputs.logits.argmax(dim=-1)
    agrees = (answers[:, :-1] == answers[:, -1:]).to(guess.dtype)
    return functional.binary_cross_entropy_with_logits(guess, agrees)
