"""TokenMethod, the interface of methods of generation, in which a decoded token exits.

As :mod:`consistentee.methods.method`, with the same rules and another model, task and recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from consistentee.data.prompts import TextTask
from consistentee.errors import UserError
from consistentee.methods.method import Method
from consistentee.training.recipe import TokenRecipe

if TYPE_CHECKING:
    from consistentee.engine.generate import Generations
    from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


@dataclass(frozen=True)
class TokenMethod(Method["MultiExitDecoder", TextTask, TokenRecipe]):
    """How to train a decoder's exits, which rule, which knob. Subclasses are frozen dataclasses, as those of Method.

    Class attributes besides Method's:
        kv: fills the keys and values of skipped layers, see :func:`consistentee.generate`.
        drafts: the method drafts and verifies. Its layers depend on the accepted tokens, so it is run, not replayed.
    """

    kv: ClassVar[Literal["propagate", "exact"]] = "propagate"
    drafts: ClassVar[bool] = False

    @property
    def asks_exits(self) -> bool:
        """Whether its rule, draft or branch needs an exit's prediction before the token exits."""
        return False

    def check_model(self, model: "MultiExitDecoder") -> None:
        """Raise UserError if it needs predictions that do not exist before closing layers."""
        if self.asks_exits and model.closing:
            raise UserError(
                f"{self.name} has to know what an exit says before a token leaves there, and here it says nothing "
                "before the closing layers: train it on a decoder without closing layers"
            )

    def check_task(self, task: TextTask) -> None:
        """Raise UserError for a task that is not a text task."""
        if not isinstance(task, TextTask):
            raise UserError(
                f"{self.name} lets tokens exit while a text is written; {getattr(task, 'name', task)!r} asks for labels"
            )

    def fit(self, model: "MultiExitDecoder", task: TextTask, recipe: TokenRecipe) -> "MultiExitDecoder":
        """Train the exits in the shared stage."""
        from consistentee.training.decoder.stages import train_exits

        self.check_task(task)
        train_exits(model, task, recipe)
        return model

    def model_at(self, model: "MultiExitDecoder", knob: float) -> "MultiExitDecoder":
        """Return the decoder for a knob: ``model``, or a shallower one
        (:class:`consistentee.models.decoder.stack.DecoderStack`).
        """
        return model

    def generate(self, model: "MultiExitDecoder", prompts: Sequence[str], knob: float, **options: Any) -> "Generations":
        """Generate a text for every prompt at one value of the knob.

        ``options`` are those of :func:`consistentee.generate` except ``kv``. Methods that decode differently override
        this.
        """
        from consistentee.engine.generate import generate

        return generate(self.model_at(model, knob), prompts, self.rule(model, knob), kv=self.kv, **options)
