"""Drafters of self-speculative decoding: an exit; a branch, which attends; or the model without some sublayers."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from consistentee.backbones.decoders import DecoderContext, KeysValues
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack
from consistentee.models.decoder.sublayers import SkippedSublayers


class Drafter(Protocol):
    """Predicts the next token from the states of its layer.

    Attributes:
        cached_layers: layers that it adds to the cache, behind layer L.
        size_in_layers: what it adds to its layers on every token that it reads, in layers.
        provisional: it runs layers that are to verify the draft, and what they keep of it counts no more then.
    """

    cached_layers: int
    size_in_layers: float
    provisional: bool

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Read what the draft layer made of new tokens, and return what :meth:`logits` reads: [rows, T, width]."""
        ...

    def logits(self, state: Tensor) -> Tensor:
        """Return the logits of states: [rows, width] -> [rows, vocabulary]."""
        ...


def drafter_at(model: MultiExitDecoder, layer: int) -> Drafter:
    """Return what drafts at an exit layer: its branch where it has one, else the exit."""
    return BranchDrafter(model, layer) if model.has_branch(layer) else ExitDrafter(model, layer)


class ExitDrafter:
    """An exit, which reads one hidden state and nothing before it."""

    cached_layers = 0
    size_in_layers = 0.0
    provisional = False

    def __init__(self, model: MultiExitDecoder, layer: int) -> None:
        self._model = model
        self._layer = layer

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Return the hidden states."""
        return hidden

    def logits(self, state: Tensor) -> Tensor:
        return self._model.logits(self._layer, state)


class BranchDrafter:
    """A branch. It reads every token that is read, the last of a draft included, so that it never has a hole."""

    cached_layers = 1
    provisional = False

    def __init__(self, model: MultiExitDecoder, layer: int) -> None:
        self.size_in_layers = model.branch(layer).size_in_layers
        self._stack = DecoderStack(model, layer)
        self._place = model.num_layers

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run the branch's layer, with its keys and values behind those of layer L."""
        assert context.cache is not None
        own = replace(context, cache=_Elsewhere(context.cache, self._place))
        return self._stack.stepper.step(self._stack.num_layers, hidden, own)

    def logits(self, state: Tensor) -> Tensor:
        return self._stack.logits(self._stack.num_layers, state)


class SublayerDrafter:
    """The model without some sublayers, on embedded tokens.

    It attends to what the full model has kept of the text. A token that it reads runs only when it is asked what comes
    next: so prompts do not, nor does the last token of a draft.
    """

    cached_layers = 0
    provisional = True

    def __init__(self, model: MultiExitDecoder, skipped: SkippedSublayers) -> None:
        """Raises UserError for sublayers that there are not, or that cannot be skipped in this family."""
        skipped.check(model.stepper)
        self.size_in_layers = skipped.layers_left(model.stepper)
        self._model = model
        self._skipped = skipped
        self._newest: DecoderContext | None = None

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Note where the newest tokens are."""
        self._newest = context
        return hidden

    def logits(self, state: Tensor) -> Tensor:
        """Run the newest token of every row, embedded: [rows, width] -> [rows, vocabulary]."""
        assert self._newest is not None
        hidden = self._skipped.run(self._model.stepper, state.unsqueeze(1), self._newest)
        return self._model.logits(self._model.num_layers, hidden[:, 0])


@dataclass(frozen=True)
class _Elsewhere:
    """A cache in which a layer has another place than its number: another layer has that."""

    cache: KeysValues
    place: int

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        return self.cache.update(keys, values, self.place)
