"""The references of every table: full and static for rows and tokens; random, oracle and majority class for rows.

An exit rule must be better than the stock model, a shorter model and chance, and cannot be better than the oracle on
the jointly trained model. A decoder has exits after some layers only; knobs count true layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import consistentee as ee
from consistentee.training import train_last_exit, train_last_token_exit

_HASH_RANGE = 2**31 - 1
_LAYERS = tuple(float(layer) for layer in range(1, 13))


@dataclass(frozen=True)
class Full(ee.Method):
    """The stock model, fine-tuned with its last classifier alone, without exits."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "reference: the backbone itself"
    knob: ClassVar[ee.Knob] = ee.Knob("layer", (12.0,))
    supports_regression: ClassVar[bool] = True

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        train_last_exit(model, task, recipe)
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return (float(model.num_layers),)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.NeverExit()


@dataclass(frozen=True)
class Static(ee.JointMethod):
    """Every row exits at the same layer of the jointly trained model: a shorter model."""

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = "reference: the same exit layer for every row"
    knob: ClassVar[ee.Knob] = ee.Knob("layer", _LAYERS)
    supports_regression: ClassVar[bool] = True

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return tuple(float(layer) for layer in range(1, model.num_layers + 1))

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.StaticRule(round(knob))


class RandomRule(ee.ExitRule):
    """Exit at a layer drawn for each row.

    The draw is a hash of the row's key and the seed, so it depends neither on the batch nor on the place. The
    distribution is uniform over the layers, mixed with the first or the last one to have the given mean; with the same
    seed, a larger mean moves no row to an earlier exit.

    Args:
        mean_layer: the mean of the distribution.
        seed: of the draws.
    """

    def __init__(self, mean_layer: float, seed: int) -> None:
        self.mean_layer = mean_layer
        self.seed = seed

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        mixed = view.row_keys + self.seed * 2_654_435_761 % _HASH_RANGE
        for multiplier in (48_271, 69_621):  # two rounds of a Lehmer generator, enough to break up similar keys
            mixed = (mixed % _HASH_RANGE * multiplier + 11) % _HASH_RANGE
        return mixed.double() / _HASH_RANGE < 1 - survival(view.layer, view.num_layers, self.mean_layer)


def survival(layer: int, num_layers: int, mean_layer: float) -> float:
    """Compute the probability of running past ``layer`` under the distribution of :class:`RandomRule`."""
    uniform_mean, uniform = (1 + num_layers) / 2, (num_layers - layer) / num_layers
    if mean_layer <= uniform_mean:
        return (mean_layer - 1) / (uniform_mean - 1) * uniform
    share = (mean_layer - uniform_mean) / (num_layers - uniform_mean)
    return share + (1 - share) * uniform


@dataclass(frozen=True)
class Random(Static):
    """Every row exits at a random layer of the jointly trained model, with a given mean."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "reference: a random exit layer with the same mean"
    knob: ClassVar[ee.Knob] = ee.Knob("mean layer", _LAYERS)

    seed: int = 0

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return tuple(half / 2 for half in range(2, 2 * model.num_layers + 1))

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return RandomRule(knob, self.seed)


class OracleRule(ee.ExitRule):
    """Exit at the first layer, from ``first_layer`` on, with the right answer. Labels exist only in a trace."""

    def __init__(self, first_layer: int) -> None:
        self.first_layer = first_layer

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        return (view.predictions == view.labels) & (view.layer >= self.first_layer)


@dataclass(frozen=True)
class Oracle(Static):
    """Every row exits at its first right answer, else at layer L: the upper bound of rules on the joint model."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "reference: the first layer that is right (upper bound; reads the labels)"
    knob: ClassVar[ee.Knob] = ee.Knob("first layer", _LAYERS)
    supports_regression: ClassVar[bool] = False
    replay_only: ClassVar[bool] = True

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return OracleRule(round(knob))


@dataclass(frozen=True)
class Majority(ee.Method):
    """Answer the most frequent class (or the mean) of the training rows after layer 1."""

    name: ClassVar[str] = "majority"
    paper: ClassVar[str] = "reference: the most frequent class"
    knob: ClassVar[ee.Knob] = ee.Knob("layer", (1.0,))
    supports_regression: ClassVar[bool] = True

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        labels = torch.tensor(recipe.training_rows(task.train).labels)
        if task.regression:
            bias = labels.double().mean().unsqueeze(0)
        else:
            bias = torch.bincount(labels, minlength=task.num_labels).double().clamp_min(1e-6).log()
        for classifier in model.classifiers:
            state = {"weight": torch.zeros_like(classifier.state_dict()["weight"]), "bias": bias}
            classifier.load_state_dict(state)
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return tuple(float(layer) for layer in range(1, model.num_layers + 1))

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.StaticRule(round(knob))


@dataclass(frozen=True)
class TokenFull(ee.TokenMethod):
    """The stock model without exits, fine-tuned with its last exit if the recipe trains the backbone."""

    name: ClassVar[str] = "token-full"
    paper: ClassVar[str] = "reference: the backbone itself"
    knob: ClassVar[ee.Knob] = ee.Knob("layer", (30.0,))

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        if recipe.trains != "exits":
            train_last_token_exit(model, task, recipe)
        return model

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return (float(model.num_layers),)

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return ee.NeverExit()


@dataclass(frozen=True)
class TokenStatic(ee.TokenMethod):
    """Every token exits at the same layer: a shorter model, with all exits trained."""

    name: ClassVar[str] = "token-static"
    paper: ClassVar[str] = "reference: the same exit layer for every token"
    knob: ClassVar[ee.Knob] = ee.Knob("layer", (6.0, 12.0, 18.0, 24.0, 30.0))  # five exits of 30 layers

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return ee.StaticRule(model.check_exit_layer(knob))
