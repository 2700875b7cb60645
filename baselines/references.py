"""The references that every table carries: full, static, random, oracle and majority class.

They say what an exit rule must beat: the stock model, a shorter model, chance; and what no rule on the jointly trained
model can beat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from consistentee.data.instances import TaskData
from consistentee.methods.method import Knob, Method
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit, State
from consistentee.rules.view import LayerView
from consistentee.training.loop import label_tensor
from consistentee.training.recipe import Recipe
from consistentee.training.stages import train_jointly, train_last_exit

_HASH_RANGE = 2**31 - 1


def _layers(model: MultiExitModel) -> tuple[float, ...]:
    return tuple(float(layer) for layer in range(1, model.num_layers + 1))


@dataclass(frozen=True)
class Full(Method):
    """The stock model: fine-tuned with its last classifier alone, and never left early."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "reference: the backbone itself"
    knob: ClassVar[Knob] = Knob("layer", (12.0,))
    supports_regression: ClassVar[bool] = True

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Fine-tune backbone and last classifier."""
        train_last_exit(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """There is one value: the last layer."""
        return (float(model.num_layers),)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Never exit."""
        self.check_knob(model, knob)
        return NeverExit()


@dataclass(frozen=True)
class _JointlyTrained(Method):
    """References that put a rule on the jointly trained model."""

    supports_regression: ClassVar[bool] = True

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train backbone and all classifiers on the depth-weighted loss."""
        self.check_task(task)
        train_jointly(model, task, recipe)
        return model


class StaticRule(ExitRule):
    """Every row leaves at the same layer."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare layer numbers."""
        return torch.full((view.rows,), view.layer >= self.layer, device=view.device)


@dataclass(frozen=True)
class Static(_JointlyTrained):
    """Every row leaves the jointly trained model at the same layer: a shorter model."""

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = "reference: the same exit layer for every row"
    knob: ClassVar[Knob] = Knob("layer", tuple(float(layer) for layer in range(1, 13)))

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """Return 1..L."""
        return _layers(model)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit at layer ``knob``."""
        self.check_knob(model, knob)
        return StaticRule(round(knob))


class RandomRule(ExitRule):
    """Leave at a layer drawn for each row, whatever the layer says.

    The draw is a hash of the row's tokens and the seed, so that a row's fate is its own: it depends neither on its
    batch nor on its place. The distribution is uniform over 1..L, mixed with all mass on layer 1 or on layer L so
    that its mean is as asked; with the same seed, a larger mean moves no row to an earlier layer.
    """

    def __init__(self, mean_layer: float, seed: int) -> None:
        self.mean_layer = mean_layer
        self.seed = seed

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Exit once the row's draw lies below the probability of having left."""
        draw = self._uniform(view.row_keys)
        return draw < 1 - self._survival(view.layer, view.num_layers)

    def _survival(self, layer: int, num_layers: int) -> float:
        """Probability of running past ``layer``."""
        uniform_mean = (num_layers + 1) / 2
        uniform = 1 - layer / num_layers
        if self.mean_layer <= uniform_mean:
            share = (self.mean_layer - 1) / (uniform_mean - 1)
            return share * uniform
        share = (self.mean_layer - uniform_mean) / (num_layers - uniform_mean)
        return share + (1 - share) * uniform

    def _uniform(self, keys: Tensor) -> Tensor:
        mixed = keys + self.seed * 2_654_435_761
        for multiplier in (
            48_271,
            69_621,
        ):  # two rounds of a Lehmer generator, enough to break up similar keys
            mixed = (mixed * multiplier + 11) % _HASH_RANGE
        return mixed.double() / _HASH_RANGE


@dataclass(frozen=True)
class Random(_JointlyTrained):
    """Leave the jointly trained model at a random layer, with a given mean."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "reference: a random exit layer with the same mean"
    knob: ClassVar[Knob] = Knob("mean layer", tuple(float(layer) for layer in range(1, 13)))

    seed: int = 0

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """Return means from 1 to L in steps of a half."""
        return tuple(half / 2 for half in range(2, 2 * model.num_layers + 1))

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit at random, ``knob`` layers on average."""
        self.check_knob(model, knob)
        return RandomRule(knob, self.seed)


class OracleRule(ExitRule):
    """Leave at the first layer, from some layer on, whose answer is right."""

    def __init__(self, first_layer: int) -> None:
        self.first_layer = first_layer

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Compare answers with the true labels, which only a trace knows."""
        return (view.predictions == view.labels) & (view.layer >= self.first_layer)


@dataclass(frozen=True)
class Oracle(_JointlyTrained):
    """Leave the jointly trained model at the first right answer, else at layer L: the upper bound of rules on it."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "reference: the first layer that is right (upper bound; reads the labels)"
    knob: ClassVar[Knob] = Knob("first layer", tuple(float(layer) for layer in range(1, 13)))
    supports_regression: ClassVar[bool] = False
    replay_only: ClassVar[bool] = True

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """Return 1..L: the first layer at which a row may leave."""
        return _layers(model)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit at the first right layer that is not before layer ``knob``."""
        self.check_knob(model, knob)
        return OracleRule(round(knob))


@dataclass(frozen=True)
class Majority(Method):
    """Answer the most frequent class of the training rows (or their mean) after layer 1: nothing is learned."""

    name: ClassVar[str] = "majority"
    paper: ClassVar[str] = "reference: the most frequent class"
    knob: ClassVar[Knob] = Knob("layer", (1.0,))
    supports_regression: ClassVar[bool] = True

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Give every classifier a bias, the log frequency of the classes, and no weights."""
        labels = label_tensor(recipe.training_rows(task.train).labels)
        if task.regression:
            bias = labels.float().mean().unsqueeze(0)
        else:
            bias = torch.bincount(labels, minlength=task.num_labels).float().clamp_min(1e-6).log()
        for classifier in model.classifiers:
            state = {"weight": torch.zeros_like(classifier.state_dict()["weight"]), "bias": bias}
            classifier.load_state_dict(state)
        return model

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """Return 1..L, which all give the same answers."""
        return _layers(model)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit at layer ``knob``."""
        self.check_knob(model, knob)
        return StaticRule(round(knob))
