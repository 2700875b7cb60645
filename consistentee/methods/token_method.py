"""TokenMethod, the interface of the methods of generation: what leaves early there is a token being decoded.

How to train, which rule, which knob, as in :mod:`consistentee.methods.method`, where these methods are found by name
too. The rules are the same objects as in classification; what differs is the model, the task and the recipe.
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

    Class attributes, beside Method's:
        kv: what fills the keys and values of the layers that a token skips, see :func:`consistentee.generate`.
        drafts: the method drafts and verifies. The layers that it calls then depend on what is accepted, so that it is
            run where others are replayed.
    """

    kv: ClassVar[Literal["propagate", "exact"]] = "propagate"
    drafts: ClassVar[bool] = False

    @property
    def asks_exits(self) -> bool:
        """Whether it has to know what an exit says before a token leaves there: for its rule, a draft or a branch."""
        return False

    def check_model(self, model: "MultiExitDecoder") -> None:
        """Raise UserError if it has to know what exits say, and they say nothing before closing layers."""
        if self.asks_exits and model.closing:
            raise UserError(
                f"{self.name} has to know what an exit says before a token leaves there, and here it says nothing "
                "before the closing layers: train it on a decoder without closing layers"
            )

    def check_task(self, task: TextTask) -> None:
        """Raise UserError if the task does not ask for texts."""
        if not isinstance(task, TextTask):
            raise UserError(
                f"{self.name} lets tokens exit while a text is written; {getattr(task, 'name', task)!r} asks for labels"
            )

    def model_at(self, model: "MultiExitDecoder", knob: float) -> "MultiExitDecoder":
        """Return what decodes at one value of the knob: ``model`` itself, or a part of it that :meth:`rule` fits too.

        A method whose exits are decoders of their own, as shallow as the knob says, returns one of them
        (:class:`consistentee.models.decoder.stack.DecoderStack`).
        """
        return model

    def generate(self, model: "MultiExitDecoder", prompts: Sequence[str], knob: float, **options: Any) -> "Generations":
        """Write a text after every prompt, at one value of the knob.

        ``options`` are those of :func:`consistentee.generate`, but for ``kv``, which is the method's own. Methods that
        decode in another way override this, and take the options of what they call.
        """
        from consistentee.engine.generate import generate

        return generate(self.model_at(model, knob), prompts, self.rule(model, knob), kv=self.kv, **options)
