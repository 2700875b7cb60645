"""E2CM (Goermez et al., IJCNN 2022, arXiv 2103.01148): exits without training, at the means of the classes.

Training: the backbone and the last classifier are fine-tuned as the full model. One pass over the training rows gives
the mean vector of every class at every layer, and the mean distance of all rows from it. Rule: a layer answers with
``softmax_k(-d_k / mean d_k)``, d_k the Euclidean distance from the mean of class k; exit if the largest probability is
above a threshold T. Layer L answers with its own classifier.

Choices: the vectors are the pooled ones, in eval mode. Thresholds, one for all layers, are dense near 1/C, because
distances differ little. A class without a training row is never answered early.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import consistentee as ee
from consistentee.signals import top_probability
from consistentee.training import cached_rows, train_last_exit, training_source

_PARTS = tuple(10.0 ** (exponent / 18) for exponent in range(-72, 0))  # shares of the interval from 1/C to 1
# Also used for a class without rows, whose relative distance is then so large that it is never answered.
_SMALLEST_MEAN_DISTANCE = 1e-6


class ClassMeansClassifier(ee.InternalClassifier):
    """Minus the distance from each class mean, divided by the average distance of training rows."""

    def __init__(self, spec: ee.ClassifierSpec, place: ee.ExitPlace) -> None:
        super().__init__(spec, place)
        self.means = nn.Parameter(torch.empty(place.num_labels, place.width).normal_(std=0.02))
        self.mean_distances = nn.Parameter(torch.ones(place.num_labels))

    def distances(self, pooled: Tensor) -> Tensor:
        """Return the distances of pooled vectors [rows, width] from the means: [rows, classes].

        They are counted from the middle of the means: squares of vectors far from 0 would cancel to rounding errors.
        """
        middle = self.means.mean(dim=0)
        vectors, means = pooled - middle, self.means - middle
        squares = vectors.square().sum(dim=-1, keepdim=True) + means.square().sum(dim=-1)
        return (squares - 2 * functional.linear(vectors, means)).clamp_min(0).sqrt()

    def forward(self, layer: ee.ReadableLayer) -> Tensor:
        return -self.distances(layer.pooled) / self.mean_distances


@dataclass(frozen=True)
class E2CM(ee.Method):
    """Full fine-tuning, class means, confidence rule."""

    name: ClassVar[str] = "e2cm"
    paper: ClassVar[str] = "Goermez et al., E2CM, IJCNN 2022, arXiv 2103.01148"
    knob: ClassVar[ee.Knob] = ee.Knob("confidence", (0.0, *(0.5 + 0.5 * part for part in _PARTS), 1.0))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        train_last_exit(model, source, recipe)
        model.use_classifier(ee.ClassifierSpec("class-means", at_last_layer=False), recipe.seed)
        pooled = cached_rows(model, source, recipe).outputs.pooled
        for layer in range(1, model.num_layers):
            put_means(cast(ClassMeansClassifier, model.classifier(layer)), pooled[:, layer - 1], source.labels)
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        chance = 1 / model.num_labels
        return (0.0, *(chance + (1 - chance) * part for part in _PARTS), 1.0)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(top_probability, knob, exit_when="above")


@torch.no_grad()
def put_means(classifier: ClassMeansClassifier, pooled: Tensor, labels: Tensor) -> None:
    """Fit a classifier to the pooled vectors [rows, width] and labels [rows] of one layer."""
    classes = len(classifier.means)
    for label in range(classes):
        rows = pooled[labels == label]
        classifier.means[label] = rows.mean(dim=0) if len(rows) else 0.0
    distances = classifier.distances(pooled.to(classifier.means.device)).mean(dim=0).clamp_min(_SMALLEST_MEAN_DISTANCE)
    has_rows = torch.bincount(labels, minlength=classes).to(distances.device) > 0
    classifier.mean_distances.copy_(distances.where(has_rows, _SMALLEST_MEAN_DISTANCE))
