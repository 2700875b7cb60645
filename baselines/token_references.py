"""The references that every table of generation carries: full, static and random, for tokens.

They say what a rule for tokens must beat: the stock model, a shorter model, chance. Exits are after some layers only,
``model.exit_layers``; the knobs count true layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit, State
from consistentee.rules.schedules import ScheduledRule, check_exit_layer, mean_layers
from consistentee.rules.view import LayerView
from consistentee.training.recipe import TokenRecipe
from consistentee.training.token_stages import train_exits, train_last_exit

_HASH_RANGE = 2**31 - 1
_LAYERS = Knob("layer", tuple(float(layer) for layer in range(6, 31, 6)))


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
            train_last_exit(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """There is one value: the last layer."""
        return (float(model.num_layers),)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Never exit."""
        self.check_knob(model, knob)
        return NeverExit()


@dataclass(frozen=True)
class TokenStatic(TokenMethod):
    """Every token leaves at the same exit: a shorter model, with all exits trained."""

    name: ClassVar[str] = "token-static"
    paper: ClassVar[str] = "reference: the same exit layer for every token"
    knob: ClassVar[Knob] = _LAYERS

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train all exits, as the stage that methods share does."""
        self.check_task(task)
        train_exits(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return the exit layers."""
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit at layer ``knob``. Raises UserError where there is no exit."""
        self.check_knob(model, knob)
        return ScheduledRule([check_exit_layer(model, knob)])


class RandomTokenRule(ExitRule):
    """Leave at an exit drawn for each token, whatever the layer says.

    The draw is a hash of the prompt, the token's place and the seed, so that its exit depends on no other row. The
    distribution is uniform over the exit layers, mixed with all mass on the first or on the last one so that its mean
    is as asked; with the same seed, a larger mean moves no token to an earlier exit.
    """

    def __init__(self, exit_layers: Sequence[int], mean_layer: float, seed: int) -> None:
        self.exit_layers = tuple(exit_layers)
        self.mean_layer = mean_layer
        self.seed = seed

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Exit once the token's draw lies below the probability of having left."""
        return self._uniform(view.row_keys) < 1 - self.survival(view.layer)

    def survival(self, layer: int) -> float:
        """Probability of running past ``layer``."""
        first, last = self.exit_layers[0], self.exit_layers[-1]
        uniform_mean = sum(self.exit_layers) / len(self.exit_layers)
        uniform = sum(exit_layer > layer for exit_layer in self.exit_layers) / len(self.exit_layers)
        if self.mean_layer <= uniform_mean:
            return (self.mean_layer - first) / (uniform_mean - first) * uniform
        share = (self.mean_layer - uniform_mean) / (last - uniform_mean)
        return share + (1 - share) * uniform

    def _uniform(self, keys: Tensor) -> Tensor:
        mixed = keys + self.seed * 2_654_435_761
        for multiplier in (48_271, 69_621):  # two rounds of a Lehmer generator, enough to break up similar keys
            mixed = (mixed % _HASH_RANGE * multiplier + 11) % _HASH_RANGE
        return mixed.double() / _HASH_RANGE


@dataclass(frozen=True)
class TokenRandom(TokenStatic):
    """Every token leaves at a random exit, with a given mean over many tokens.

    Attributes:
        seed: of the draws.
    """

    name: ClassVar[str] = "token-random"
    paper: ClassVar[str] = "reference: a random exit layer with the same mean"
    knob: ClassVar[Knob] = Knob("mean layer", _LAYERS.values)

    seed: int = 0

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return means from the first exit layer to L: every exit layer, and half-way between two."""
        return mean_layers(model)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit at random, at layer ``knob`` on average."""
        self.check_knob(model, knob)
        return RandomTokenRule(model.exit_layers, knob, self.seed)
