"""TokenView: the outputs of a layer for tokens that are being decoded; and the keys that identify a token."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from consistentee.data.encoding import Encoding
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.view import LayerView, best_among


def prompt_key(tokens: Sequence[int]) -> int:
    """Return a hash of a prompt's tokens alone: the same on every machine, whatever batch the prompt is in."""
    return Encoding(list(tokens)).key


def token_key(prompt: int, step: int) -> int:
    """Return the key of the new token at place ``step`` behind the prompt with key ``prompt``: below 2 ** 31."""
    return keyed_bits(prompt, step) >> 33


def keyed_bits(*numbers: int) -> int:
    """Return 64 bits that look random and depend on the numbers alone."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class TokenView(LayerView):
    """The view of an exit layer that has just run on the newest tokens of some rows.

    A row is a token that is being decoded; it predicts the token at place ``step`` of the new ones: one for all rows,
    or one a row. ``hidden`` [rows, 1, width] are the states after the layer; ``past`` those at the exits before
    [rows, exits, width], or None if no rule reads them. ``layer`` counts closing layers, though none has run yet.
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        layer: int,
        hidden: Tensor,
        step: int | Sequence[int],
        prompt_keys: Sequence[int],
        *,
        past: Tensor | None = None,
    ) -> None:
        super().__init__(layer, model.num_layers, len(hidden), hidden.device)
        self._model = model
        self._hidden = hidden
        self._prompt_keys = prompt_keys
        self._past = past
        self.places = [step] * self.rows if isinstance(step, int) else step
        self._among: tuple[Tensor, Tensor] | None = None

    def _check_readable(self) -> None:
        if self._model.last_layers:
            raise UserError(
                f"this exit rule reads the prediction of the exit at layer {self.layer}, and here an exit predicts "
                "nothing before the closing layers: use a rule that reads states (view.pooled, a learned head), or a "
                "decoder without closing layers"
            )

    @cached_property
    def hidden(self) -> Tensor:
        return self._hidden

    @cached_property
    def pooled(self) -> Tensor:
        """The stock final norm of the hidden states, which learned heads read: [rows, width]."""
        return self._model.state(self.hidden[:, 0])

    @cached_property
    def logits(self) -> Tensor:
        """Output of the exit's adapter and the LM head: [rows, vocabulary]. Raises UserError with closing layers."""
        self._check_readable()
        return self._model.logits(self.layer, self.hidden[:, 0])

    def logits_among(self, classes: Tensor) -> Tensor:
        """Return the logits of some tokens, the only ones that the exit predicts from then on: [rows, K]."""
        self._check_readable()
        if self._among is None or self._among[0] is not classes:
            self._among = classes, self._model.logits_among(self.layer, self.hidden[:, 0], classes)
        return self._among[1]

    @cached_property
    def predictions(self) -> Tensor:
        return best_among(self.logits, None) if self._among is None else best_among(self._among[1], self._among[0])

    @property
    def has_logits(self) -> bool:
        """Whether logits of this exit have been read."""
        return self._among is not None or "logits" in self.__dict__

    def logits_of(self, take: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits of the rows that ``take`` selects; the others are not computed, unless they have been.

        Where the exit predicts among some tokens alone, the logits of others are minus infinity.
        """
        if self._among is not None:
            tokens, logits = map(take, self._among)
            return logits.new_full((len(logits), self._model.stepper.vocabulary), -torch.inf).scatter(1, tokens, logits)
        return take(self.logits) if self.has_logits else self._model.logits(self.layer, take(self.hidden[:, 0]))

    @cached_property
    def row_keys(self) -> Tensor:
        keys = [token_key(key, step) for key, step in zip(self._prompt_keys, self.places, strict=True)]
        return torch.tensor(keys, device=self.device)

    def _run_head(self, name: str, extra: Tensor | None) -> Tensor:
        return self._model.head(name)(self.layer, self.pooled, extra)
