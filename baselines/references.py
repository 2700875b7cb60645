"""The references that every table carries: full, static and random, for both kinds; oracle and majority class.

They say what an exit rule must beat: the stock model, a shorter model, chance; and what no rule on the jointly trained
model can beat. A decoder's exits are after some layers only, ``model.exit_layers``; its knobs count true layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from consistentee.data.instances import TaskData
from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob, Method
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit, State, StaticRule
from consistentee.rules.schedules import check_exit_layer, mean_layers
from consistentee.rules.view import LayerView
from consistentee.training.decoder.stages import train_exits
from consistentee.training.decoder.stages import train_last_exit as train_last_token_exit
from consistentee.training.recipe import Recipe, TokenRecipe
from consistentee.training.sources import label_tensor
from consistentee.training.stages import train_jointly, train_last_exit

_HASH_RANGE = 2**31 - 1
_EXIT_LAYERS = tuple(float(layer) for layer in range(6, 31, 6))
"""Of a decoder of 30 layers with five exits."""


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
        """Fine-tune backbone and last classifier on CE_L."""
        self.check_task(task)
        train_last_exit(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """There is one value: the last layer."""
        return (float(model.num_layers),)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Never exit before the last layer."""
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


@dataclass(frozen=True)
class Static(_JointlyTrained):
    """Every row leaves the jointly trained model at the same layer: a shorter model."""

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = "reference: the same exit layer for every row"
    knob: ClassVar[Knob] = Knob("layer", tuple(float(layer) for layer in range(1, 13)))

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        return _layers(model)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit at layer ``knob``."""
        self.check_knob(model, knob)
        return StaticRule(round(knob))


class RandomRule(ExitRule):
    """Leave at an exit drawn for each row, whatever the layer says.

    The draw is a hash of the row's key and the seed, so that a row's fate is its own: it depends neither on its batch
    nor on its place. The distribution is uniform over the exit layers, mixed with all mass on the first or on the last
    one so that its mean is as asked; with the same seed, a larger mean moves no row to an earlier exit.
    """

    def __init__(self, mean_layer: float, seed: int, exit_layers: Sequence[int] | None = None) -> None:
        """``exit_layers``: where rows may leave; None for every layer."""
        self.mean_layer = mean_layer
        self.seed = seed
        self.exit_layers = exit_layers

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Exit once the row's draw lies below the probability of having left."""
        exit_layers = self.exit_layers or range(1, view.num_layers + 1)
        return self._uniform(view.row_keys) < 1 - survival(view.layer, exit_layers, self.mean_layer)

    def _uniform(self, keys: Tensor) -> Tensor:
        mixed = keys + self.seed * 2_654_435_761
        for multiplier in (48_271, 69_621):  # two rounds of a Lehmer generator, enough to break up similar keys
            mixed = (mixed % _HASH_RANGE * multiplier + 11) % _HASH_RANGE
        return mixed.double() / _HASH_RANGE


def survival(layer: int, exit_layers: Sequence[int], mean_layer: float) -> float:
    """Return the probability of running past ``layer`` under the distribution of :class:`RandomRule`."""
    first, last = exit_layers[0], exit_layers[-1]
    uniform_mean = sum(exit_layers) / len(exit_layers)
    uniform = sum(exit_layer > layer for exit_layer in exit_layers) / len(exit_layers)
    if mean_layer <= uniform_mean:
        return (mean_layer - first) / (uniform_mean - first) * uniform
    share = (mean_layer - uniform_mean) / (last - uniform_mean)
    return share + (1 - share) * uniform


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
        self.check_task(task)
        labels = label_tensor(recipe.training_rows(task.train).labels)
        if task.regression:
            bias = labels.double().mean().unsqueeze(0)
        else:
            bias = torch.bincount(labels, minlength=task.num_labels).double().clamp_min(1e-6).log()
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


@dataclass(frozen=True)
class TokenFull(TokenMethod):
    """The stock model, never left early: fine-tuned with its last exit alone where the backbone is trained at all."""

    name: ClassVar[str] = "token-full"
    paper: ClassVar[str] = "reference: the backbone itself"
    knob: ClassVar[Knob] = Knob("layer", (30.0,))

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Fine-tune the backbone with its last exit alone, or leave a frozen one as it is."""
        self.check_task(task)
        if recipe.trains != "exits":
            train_last_token_exit(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """There is one value: the last layer."""
        return (float(model.num_layers),)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Never exit before the last layer."""
        self.check_knob(model, knob)
        return NeverExit()


@dataclass(frozen=True)
class TokenStatic(TokenMethod):
    """Every token leaves at the same exit: a shorter model, with all exits trained."""

    name: ClassVar[str] = "token-static"
    paper: ClassVar[str] = "reference: the same exit layer for every token"
    knob: ClassVar[Knob] = Knob("layer", _EXIT_LAYERS)

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train all exits, as the stage that methods share does."""
        self.check_task(task)
        train_exits(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit at layer ``knob``. Raises UserError where there is no exit."""
        self.check_knob(model, knob)
        return StaticRule(check_exit_layer(model, knob))


@dataclass(frozen=True)
class TokenRandom(TokenStatic):
    """Every token leaves at a random exit, with a given mean over many tokens.

    Attributes:
        seed: of the draws.
    """

    name: ClassVar[str] = "token-random"
    paper: ClassVar[str] = "reference: a random exit layer with the same mean"
    knob: ClassVar[Knob] = Knob("mean layer", _EXIT_LAYERS)

    seed: int = 0

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return means from the first exit layer to L: every exit layer, and half-way between two."""
        return mean_layers(model)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit at random, at layer ``knob`` on average."""
        self.check_knob(model, knob)
        return RandomRule(knob, self.seed, model.exit_layers)
