"""Schedules: which rows run next, and which stage of their newest token.

The stages of a token are the segments, each of which ends at an exit; then, wherever it exits, what lies behind all
exits: the last layers, if every token runs them, and the LM head; and at last the new token is read from the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from consistentee.engine.row_states import RowStates
from consistentee.engine.rows import RowNumbers

Schedule = Callable[[RowStates], tuple[int, RowNumbers]]
"""Choose the next stage, and the slots whose rows run it, in increasing order; at least one row waits."""

PATIENCE = 100
"""Turns that a row is passed over at most before its stage runs, full or not; as many as DREX has."""


def in_step(rows: RowStates) -> tuple[int, RowNumbers]:
    """Let all rows advance together: none begins a token before all others have theirs."""
    stages = rows.stages[rows.stages > 0]
    stage = int(stages.min()) if len(stages) else 0
    return stage, np.flatnonzero(rows.stages == stage)


@dataclass(frozen=True)
class Regrouping:
    """Let a stage run once a batch of rows waits for it: dynamic rebatching, where no row is kept against its rule.

    (Liu et al., DREX, 2025, arXiv 2512.15705.) If no batch is full, the fullest runs: the cost of a batch hardly
    depends on its rows, so rows that wait cost less than rows that run alone. If several are full, the one with the row
    that is furthest behind runs; and of a stage those rows run first. So rows keep pace with each other, however deep
    their tokens go, and none is left to write the rest of its text alone.

    Attributes:
        batch_sizes: number of rows of a full batch of each stage but the last, which runs at once.
    """

    batch_sizes: tuple[int, ...]

    def __call__(self, rows: RowStates) -> tuple[int, RowNumbers]:
        last = np.flatnonzero(rows.stages == len(self.batch_sizes))
        if len(last):
            return len(self.batch_sizes), last
        rows.turn += 1
        taken = rows.taken
        longest = taken[rows.since[taken].argmin()]
        overdue = rows.turn - rows.since[longest] > PATIENCE
        stage = int(rows.stages[longest]) if overdue else self._fullest(rows, taken)
        slots = np.flatnonzero(rows.stages == stage)
        first_by = rows.since if overdue else rows.tokens
        first = np.lexsort((rows.since[slots], first_by[slots]))[: self.batch_sizes[stage]]
        return stage, np.sort(slots[first])

    def _fullest(self, rows: RowStates, taken: RowNumbers) -> int:
        counts = np.bincount(rows.stages[taken], minlength=len(self.batch_sizes))
        filled = (counts / self.batch_sizes).clip(max=1.0)
        fullest = taken[filled[rows.stages[taken]] == filled.max()]
        return int(rows.stages[fullest[rows.tokens[fullest].argmin()]])
