"""Waiting: rows under way, each before the stage that it is to run next, and who of them runs."""

import numpy as np

from consistentee.engine.cache import RowNumbers

PATIENCE = 100
"""Turns that a row is passed over at most before its stage runs, full or not; as many as DREX has."""


class Waiting:
    """Slots before their next stage. A stage runs once a batch of them is there, the deepest first.

    Where no batch is full, the stage with most rows runs: what a batch costs hardly depends on its rows, so that rows
    that wait for company cost less than rows that run without.
    """

    def __init__(self, slots: int, stages: int, batch_size: int) -> None:
        """``stages``: numbered from 0, the shallowest, to ``stages - 1``."""
        self._stages = stages
        self._batch_size = batch_size
        self._stage = np.full(slots, -1)
        self._since = np.zeros(slots, dtype=np.int64)  # the turn after which a slot came
        self._turn = 0

    def __len__(self) -> int:
        return int((self._stage >= 0).sum())

    def put(self, slots: RowNumbers, stage: int) -> None:
        """Let some slots wait before a stage."""
        self._stage[slots] = stage
        self._since[slots] = self._turn

    def take(self) -> tuple[int, RowNumbers]:
        """Return the stage to run, and the slots that run it, in increasing order: those that came first.

        At least one slot must wait.
        """
        self._turn += 1
        stage = self._next_stage()
        slots = np.flatnonzero(self._stage == stage)
        first = np.argsort(self._since[slots], kind="stable")[: self._batch_size]
        slots = np.sort(slots[first])
        self._stage[slots] = -1
        return stage, slots

    def _next_stage(self) -> int:
        waiting = np.flatnonzero(self._stage >= 0)
        longest = waiting[self._since[waiting].argmin()]
        if self._turn - self._since[longest] > PATIENCE:
            return int(self._stage[longest])
        counts = np.bincount(self._stage[waiting], minlength=self._stages)
        # Of the fullest, or of all that are full, the deepest.
        most = np.minimum(counts, self._batch_size)
        return int(np.flatnonzero(most == most.max())[-1])
