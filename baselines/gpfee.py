"""GPFEE (Liao et al., NAACL 2021, "A Global Past-Future Early Exit Method"): classifiers that read all layers.

The classifier of layer t reads the states s_1..s_t of all layers so far, and predictions of s_{t+1}..s_L made from s_t.
Training: backbone and classifiers together, on ``sum_t t * CE_t / sum_t t`` and an imitation loss, one minus the cosine
of each predicted state and the real one. Rule: exit if the entropy of the classifier, in nats, is below a threshold S.

Choices: a state is the pooled vector. Past and future are each combined by a softmax over layers of a learned score,
and concatenated. A predicted state is the current one plus a step; the steps come from one narrow hidden layer, so that
the predictors of all exits together stay small. Layer L has no future. The imitation loss is averaged over all pairs of
layers and has weight 1; the real states are detached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import consistentee as ee
from consistentee.signals import entropy, entropy_thresholds
from consistentee.training import TokenBatch, depth_weighted_loss, layer_losses, run_stage, token_stage, training_source


class LayerGate(nn.Module):
    """Weight the states of several layers for each row; the initial weights are equal."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(layers))
        nn.init.zeros_(self.score.weight)

    def forward(self, states: Tensor) -> Tensor:
        """Return the weighted mean of [rows, layers, width]: [rows, width]."""
        weights = (self.score(states).squeeze(-1) + self.bias).softmax(dim=-1)
        return (weights.unsqueeze(1) @ states).squeeze(1)


class PastFutureClassifier(ee.InternalClassifier):
    """Gated states of all layers so far, and gated predictions of the states of later layers."""

    reads_history: ClassVar[bool] = True

    def __init__(self, spec: ee.ClassifierSpec, place: ee.ExitPlace) -> None:
        super().__init__(spec, place)
        self.layers_to_come = place.num_layers - place.layer
        self.past = LayerGate(place.width, place.layer)
        if self.layers_to_come:
            steps = nn.Linear(spec.width, self.layers_to_come * place.width)
            self.predictor = nn.Sequential(nn.Linear(place.width, spec.width), nn.GELU(), steps)
            self.future = LayerGate(place.width, self.layers_to_come)
        self.output = place.output_layer(place.width * (2 if self.layers_to_come else 1))

    def predict_future(self, state: Tensor) -> Tensor:
        """Predict the pooled vectors of layers t+1..L from that of layer t [rows, width]: [rows, L-t, width]."""
        return state.unsqueeze(1) + self.predictor(state).unflatten(-1, (self.layers_to_come, -1))

    def forward(self, layer: ee.ReadableLayer) -> Tensor:
        history = layer.history
        parts = [self.past(history)]
        if self.layers_to_come:
            parts.append(self.future(self.predict_future(history[:, -1])))
        return self.output(self.dropout(torch.cat(parts, dim=-1)))


@dataclass(frozen=True)
class GPFEE(ee.Method):
    """Past-future classifiers, joint training with imitation, entropy rule."""

    name: ClassVar[str] = "gpfee"
    paper: ClassVar[str] = "Liao et al., A Global Past-Future Early Exit Method, NAACL 2021"
    knob: ClassVar[ee.Knob] = ee.Knob("entropy", entropy_thresholds(2))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        model.use_classifier(ee.ClassifierSpec("past-future"), recipe.seed)
        run_stage(model, source, token_stage("past-future", _loss, recipe), recipe)
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return entropy_thresholds(model.num_labels)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(entropy, knob, exit_when="below")


def _loss(model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    outputs = model(batch.tokens)
    return depth_weighted_loss(layer_losses(outputs.logits, batch.labels)) + imitation_loss(model, outputs.pooled)


def imitation_loss(model: ee.MultiExitModel, pooled: Tensor) -> Tensor:
    """Compute one minus the cosine of predicted and real later states, averaged over rows and pairs of layers."""
    distances = []
    for t in range(1, model.num_layers):
        classifier = cast(PastFutureClassifier, model.classifier(t))
        predicted, real = classifier.predict_future(pooled[:, t - 1]), pooled[:, t:].detach()
        distances.append(1 - functional.cosine_similarity(predicted, real, dim=-1))
    return torch.cat(distances, dim=1).mean()
