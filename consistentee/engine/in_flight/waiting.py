"""Waiting: rows under way, the stage that each runs next, and the choice of the rows that run."""

from collections.abc import Sequence

import numpy as np

from consistentee.engine.step.cache import RowNumbers

PATIENCE = 100
"""Turns that a row is passed over at most before its stage runs, full or not; as many as DREX has."""


class Waiting:
    """Slots before their next stage: number 0 begins a token. A stage runs once a batch of them is there.

    Where no batch is full, the fullest runs: what a batch costs hardly depends on its rows, so that rows that wait for
    company cost less than rows that run without. Where several are full, the one with the row that is furthest behind
    runs; and of a stage those rows run first. So rows keep pace with each other, however deep their tokens go, and none
    is left to write the rest of its text alone. Rows that came later count as level with the slowest.
    """

    def __init__(self, slots: int, batch_sizes: Sequence[int]) -> None:
        """``batch_sizes``: rows that a full batch of each stage has."""
        self._batch_sizes = np.array(batch_sizes)
        self._stage = np.full(slots, -1)
        self._tokens = np.zeros(slots, dtype=np.int64)  # written so far, as if all had begun together
        self._since = np.zeros(slots, dtype=np.int64)  # the turn after which a slot came
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting())

    def _waiting(self) -> RowNumbers:
        return np.flatnonzero(self._stage >= 0)

    def enter(self, slots: RowNumbers) -> None:
        """Begin rows in some slots; their first token makes them level with the slowest."""
        self._tokens[slots] = self._tokens[self._waiting()].min(initial=self._tokens.max() + 1) - 1

    def put(self, slots: RowNumbers, stage: int) -> None:
        """Let some slots wait before a stage; before stage 0, they have written a token more."""
        self._stage[slots] = stage
        self._since[slots] = self._turn
        if stage == 0:
            self._tokens[slots] += 1

    def take(self) -> tuple[int, RowNumbers]:
        """Return the stage to run, and the slots that run it, in increasing order; at least one must wait."""
        self._turn += 1
        waiting = self._waiting()
        longest = waiting[self._since[waiting].argmin()]
        overdue = self._turn - self._since[longest] > PATIENCE
        stage = int(self._stage[longest]) if overdue else self._fullest(waiting)
        slots = np.flatnonzero(self._stage == stage)
        first_by = self._since if overdue else self._tokens
        first = np.lexsort((self._since[slots], first_by[slots]))[: self._batch_sizes[stage]]
        slots = np.sort(slots[first])
        self._stage[slots] = -1
        return stage, slots

    def _fullest(self, waiting: RowNumbers) -> int:
        rows = np.bincount(self._stage[waiting], minlength=len(self._batch_sizes))
        filled = (rows / self._batch_sizes).clip(max=1.0)
        fullest = waiting[filled[self._stage[waiting]] == filled.max()]
        return int(self._stage[fullest[self._tokens[fullest].argmin()]])
