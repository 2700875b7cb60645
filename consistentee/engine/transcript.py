"""Transcript: the new tokens of one row, their scores, when they came, what ends it, and what a stream gets."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from consistentee.errors import UserError
from consistentee.traces.token_view import prompt_key


def clock(device: torch.device) -> float:
    """Return the time in seconds, once everything asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


EndedBy = Literal["eos", "length", "stop"]
"""The reason why a text ended: a token that ends texts, the number of new tokens, or a stop string."""


@dataclass(frozen=True)
class NewToken:
    """One new token, as a stream gets it.

    Attributes:
        row, step: places of its prompt among those asked, and of the token among the row's new ones, from 0.
        text: what can now be added to the row's text: incomplete characters and starts of stop strings are held back.
        exit_layer: 1-based.
        ended_by: None unless it is the row's last.
    """

    row: int
    step: int
    token: int
    text: str
    exit_layer: int
    ended_by: EndedBy | None


Stream = Callable[[NewToken], None]
"""Called with every new token, as soon as it is known."""


@dataclass(frozen=True)
class Endings:
    """Conditions that end a text. Raises UserError for an empty stop string.

    Attributes:
        tokens: the first of these ends it; the token is kept.
        stop: the first of these strings ends it; the text is cut before it, the tokens are kept.
        stop_tokens: special tokens that are such strings, for texts are shown without special tokens.
    """

    tokens: frozenset[int]
    stop: Sequence[str]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if any(not string for string in self.stop):
            raise UserError("a stop string must not be empty: it would end every text before it begins")

    def cut(self, text: str) -> str:
        """Return the text before the first stop string in it."""
        return text[: min((place for place in map(text.find, self.stop) if place >= 0), default=len(text))]

    def undecided(self, text: str) -> int:
        """Return how many characters at the end of ``text`` may turn out to start a stop string."""
        longest = max(map(len, self.stop), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(string.startswith(text[-n:]) for string in self.stop)), 0)


class Transcript:
    """The new tokens of one row, with their exit layers, and the layers that were filled in after each of them left.

    Attributes:
        key: hash of the prompt.
        process: changes the scores of each next token, float32 [1, vocabulary], by the tokens so far, int64 [1, T];
            usually None.
        completed_seconds: when the last token was there, since this transcript was begun; 0 before.
    """

    def __init__(
        self,
        row: int,
        decode: Callable[[Sequence[int]], str],
        endings: Endings,
        stream: Stream | None = None,
        *,
        prompt: Sequence[int] = (),
    ) -> None:
        self.row = row
        self.prompt = prompt
        self.key = prompt_key(prompt)
        self.process: Callable[[Tensor, Tensor], Tensor] | None = None
        self.tokens: list[int] = []
        self.exit_layers: list[int] = []
        self.late_layers: list[int] = []
        self.ended_by: EndedBy | None = None if endings.max_new_tokens else "length"
        self.completed_seconds = 0.0
        self._decode = decode
        self._endings = endings
        self._stream = stream
        self._streamed = 0
        self._began = time.perf_counter()

    @property
    def text(self) -> str:
        """The text so far, without the stop string that ended it."""
        text = self._decode(self.tokens)
        return self._endings.cut(text) if self.ended_by == "stop" else text

    def scores(self, logits: Tensor, draft: Sequence[Tensor] = ()) -> Tensor:
        """Process the logits of the next tokens: [T, vocabulary] -> float32, or as they are where nothing changes them.

        The last row of logits follows prompt, new tokens and ``draft`` (int64 [1] each); each row before it follows one
        token less.
        """
        if self.process is None:
            return logits
        tokens = torch.cat([torch.tensor([*self.prompt, *self.tokens], device=logits.device), *draft]).unsqueeze(0)
        ends = range(tokens.shape[1] - len(logits) + 1, tokens.shape[1] + 1)
        rows = logits.to(torch.float32, copy=True).split(1)  # as stock generate; a rule may have read these logits
        return torch.cat([self.process(tokens[:, :end], row) for end, row in zip(ends, rows, strict=True)])

    def add(self, token: int, exit_layer: int) -> None:
        """Add the next token, and set ``ended_by`` if it is the last."""
        self.tokens.append(token)
        self.exit_layers.append(exit_layer)
        self.late_layers.append(0)
        text = self._decode(self.tokens) if self._endings.stop else ""
        if token in self._endings.tokens:
            self.ended_by = "eos"
        elif token in self._endings.stop_tokens or any(string in text for string in self._endings.stop):
            self.ended_by = "stop"
        elif len(self.tokens) == self._endings.max_new_tokens:
            self.ended_by = "length"
        if self.ended_by is not None:
            self.completed_seconds = time.perf_counter() - self._began
        if self._stream is not None:
            self._stream(self.newest_token())

    def extend(self, tokens: Sequence[int], exit_layer: int) -> int:
        """Add tokens up to the one that ends the text; return how many were added."""
        before = len(self.tokens)
        for token in tokens:
            if self.ended_by is None:
                self.add(token, exit_layer)
        return len(self.tokens) - before

    def newest_token(self) -> NewToken:
        """Return the newest token with what it adds to the text; to be asked once after every token."""
        text = self.text
        if self.ended_by is None:
            text = text.rstrip("\ufffd")  # stands for bytes that are no whole character yet
            text = text[: len(text) - self._endings.undecided(text)]
        piece = text[self._streamed :]
        self._streamed += len(piece)
        step = len(self.tokens) - 1
        return NewToken(self.row, step, self.tokens[-1], piece, self.exit_layers[-1], self.ended_by)
