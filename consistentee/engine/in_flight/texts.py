"""Texts: the text of every slot, and its times."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from consistentee.engine.clock import Latency
from consistentee.engine.step.cache import RowNumbers
from consistentee.engine.step.sampling import choose_tokens
from consistentee.engine.transcript import Transcript
from consistentee.engine.writing import Writing
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import Steps
from consistentee.traces.token_view import prompt_key

_NOBODY = -1


class Texts:
    """The texts under way, one a slot.

    Attributes:
        newest: the newest token of each slot, int64 [slots], on the device.
        left: the layer that it was read off, int64 [slots].
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        transcripts: Sequence[Transcript],
        slots: int,
        writing: Writing,
    ) -> None:
        """``transcripts``: of all prompts, under way or not."""
        self.newest = torch.zeros(slots, dtype=torch.long, device=model.device)
        self.left = np.zeros(slots, dtype=np.int64)
        self._transcripts = transcripts
        self._sampling = writing.sampling
        self._row = np.full(slots, _NOBODY)
        self._key = np.zeros(slots, dtype=np.int64)
        self._place = np.zeros(slots, dtype=np.int64)
        self._queued, self._first = np.zeros(slots), np.zeros(slots)
        self._began = time.perf_counter()
        self._max_new_tokens = writing.max_new_tokens
        self._steps = Steps("decoding", len(transcripts) * writing.max_new_tokens)

    @property
    def taken(self) -> RowNumbers:
        """Slots that a text is written in."""
        return np.flatnonzero(self._row != _NOBODY)

    @property
    def free(self) -> RowNumbers:
        """The other slots."""
        return np.flatnonzero(self._row == _NOBODY)

    def begin(self, slots: RowNumbers, rows: Sequence[int], prompts: Sequence[Sequence[int]], layer: int) -> None:
        """Begin the texts behind some prompts, rows ``rows`` of all, whose first token is read off layer ``layer``."""
        self._row[slots] = rows
        self._key[slots] = [prompt_key(prompt) for prompt in prompts]
        self._place[slots] = 0
        self.left[slots] = layer
        self._queued[slots] = time.perf_counter() - self._began

    def keys(self, slots: RowNumbers) -> list[int]:
        """Return the keys of the prompts."""
        return self._key[slots].tolist()

    def places(self, slots: RowNumbers) -> list[int]:
        """Return the place that the next token of each slot will have in its text."""
        return self._place[slots].tolist()

    def say(self, slots: RowNumbers, logits: Tensor) -> RowNumbers:
        """Take the next token of some slots from logits [slots, vocabulary]; return the slots whose text has ended."""
        tokens = choose_tokens(self._sampling, logits, self.keys(slots), self.places(slots))
        self.newest[torch.from_numpy(slots).to(tokens.device)] = tokens
        spoken = tokens.tolist()
        now = time.perf_counter() - self._began
        self._first[slots] = np.where(self._place[slots] == 0, now, self._first[slots])
        self._place[slots] += 1
        transcripts = [self._transcripts[row] for row in self._row[slots]]
        for transcript, token, layer in zip(transcripts, spoken, self.left[slots].tolist(), strict=True):
            transcript.add(token, layer)
        self._steps.add(len(spoken), len(spoken))
        ended = slots[[transcript.ended_by is not None for transcript in transcripts]]
        for slot in ended.tolist():
            self.of(slot).latency = Latency(float(self._queued[slot]), float(self._first[slot]), now)
            self._steps.leave_out(self._max_new_tokens - len(self.of(slot).tokens))
        return ended

    def of(self, slot: int) -> Transcript:
        """Return what is written in a slot."""
        return self._transcripts[int(self._row[slot])]

    def end(self, slots: RowNumbers) -> None:
        """Free some slots."""
        self._row[slots] = _NOBODY
