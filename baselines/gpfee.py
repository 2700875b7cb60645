"""GPFEE (Liao et al., NAACL 2021, "A Global Past-Future Early Exit Method"): classifiers that read all layers.

The classifier of layer t reads the states s_1..s_t of all layers so far, and predictions of s_{t+1}..s_L made from s_t.
Training: backbone and classifiers together, on ``sum_t t * CE_t / sum_t t`` and an imitation loss, one minus the cosine
of each predicted state and the real one. Rule: exit if the entropy of the classifier, in nats, is below a threshold S.

Choices: a state is the pooled vector. Past and future are each combined by a softmax over layers of a learned score
(see :class:`consistentee.models.classifiers.PastFutureClassifier`) and concatenated. A predicted state is the current
one plus the output of a small network. The imitation loss is averaged over all pairs of layers and has weight 1; the
real states are detached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from consistentee import ClassifierSpec, ExitRule, Knob, Method, MultiExitModel, Recipe, TaskData, ThresholdRule
from consistentee.models.classifiers import PastFutureClassifier
from consistentee.signals import entropy, entropy_thresholds
from consistentee.training import TokenBatch, depth_weighted_loss, layer_losses, run_stage, token_stage, training_source


@dataclass(frozen=True)
class GPFEE(Method):
    """Past-future classifiers, joint training with imitation, entropy rule."""

    name: ClassVar[str] = "gpfee"
    paper: ClassVar[str] = "Liao et al., A Global Past-Future Early Exit Method, NAACL 2021"
    knob: ClassVar[Knob] = Knob("entropy", entropy_thresholds(2))

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train backbone and past-future classifiers in one stage."""
        source = training_source(model, task, recipe)
        model.use_classifier(ClassifierSpec("past-future"), recipe.seed)
        run_stage(model, source, token_stage("past-future", _loss, recipe), recipe)
        return model

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        return entropy_thresholds(model.num_labels, beyond=1.001)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if the entropy is below ``knob`` nats."""
        return ThresholdRule(entropy, knob, exit_when="below")


def _loss(model: MultiExitModel, batch: TokenBatch) -> Tensor:
    outputs = model(batch.tokens)
    return depth_weighted_loss(layer_losses(outputs.logits, batch.labels)) + imitation_loss(model, outputs.pooled)


def imitation_loss(model: MultiExitModel, pooled: Tensor) -> Tensor:
    """Compute one minus the cosine of predicted and real later states, averaged over rows and pairs of layers."""
    distances = []
    for t in range(1, model.num_layers):
        classifier = cast(PastFutureClassifier, model.classifier(t))
        predicted, real = classifier.predict_future(pooled[:, t - 1]), pooled[:, t:].detach()
        distances.append(1 - functional.cosine_similarity(predicted, real, dim=-1))
    return torch.cat(distances, dim=1).mean()
