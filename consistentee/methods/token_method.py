"""TokenMethod, the interface of the methods of generation: what leaves early there is a token being decoded.

How to train, which rule, which knob, as in :mod:`consistentee.methods.method`, where these methods are found by name
too. The rules are the same objects as in classification; what differs is the model, the task and the recipe.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from consistentee.errors import UserError
from consistentee.methods.method import Method

if TYPE_CHECKING:
    # To a type checker the two are strangers: Method's signatures name the model, task and recipe of classification.
    _Method = Any
    from consistentee.data.prompts import TextTask
    from consistentee.engine.generate import Generations
    from consistentee.models.decoder import MultiExitDecoder
    from consistentee.rules.exit_rule import ExitRule
    from consistentee.training.recipe import TokenRecipe
else:
    _Method = Method


@dataclass(frozen=True)
class TokenMethod(_Method):
    """How to train a decoder's exits, which rule, which knob. Subclasses are frozen dataclasses, as those of Method.

    Class attributes, beside Method's:
        kv: what fills the keys and values of the layers that a token skips, see :func:`consistentee.generate`.
    """

    kv: ClassVar[Literal["propagate", "exact"]] = "propagate"

    @abstractmethod
    def fit(self, model: "MultiExitDecoder", task: "TextTask", recipe: "TokenRecipe") -> "MultiExitDecoder":
        """Train ``model`` (a fresh multi-exit decoder, changed in place) on ``task.train`` and return it."""

    @abstractmethod
    def rule(self, model: "MultiExitDecoder", knob: float) -> "ExitRule":
        """Return the exit rule at one value of the knob."""

    def knob_values(self, model: "MultiExitDecoder") -> Sequence[float]:
        """Return the values worth sweeping on this model, from earliest to latest exits.

        With the first one every token that may leaves at the first exit, with the last one all run to full depth.
        """
        return self.knob.values

    def check_knob(self, model: "MultiExitDecoder", knob: float) -> None:
        """Raise UserError if ``knob`` lies outside the range of this method's knob."""
        super().check_knob(model, knob)

    def check_task(self, task: "TextTask") -> None:
        """Raise UserError if the task does not ask for texts."""
        from consistentee.data.prompts import TextTask

        if not isinstance(task, TextTask):
            raise UserError(f"{self.name} lets tokens exit while a text is written, and {task.name!r} asks for labels")

    def generate(self, model: "MultiExitDecoder", prompts: Sequence[str], knob: float, **options: Any) -> "Generations":
        """Write a text after every prompt, at one value of the knob.

        ``options`` are those of :func:`consistentee.generate`, but for ``kv``, which is the method's own. Methods that
        decode in another way override this, and take the options of what they call.
        """
        from consistentee.engine.generate import generate

        return generate(model, prompts, self.rule(model, knob), kv=self.kv, **options)


def train_token_method(
    method: TokenMethod, name: str, model: "MultiExitDecoder", task: "TextTask", recipe: "TokenRecipe"
) -> "MultiExitDecoder":
    """Check the task, fit ``method`` on it, and note in the model what it was trained for and by which method.

    ``name`` is what :func:`consistentee.get_method` found the method by, so that a saved model finds its rule again.
    """
    method.check_task(task)
    model = method.fit(model, task, recipe)
    model.description.task_name = task.name
    model.description.method_name = name
    model.description.method_parameters = method.parameters
    return model
