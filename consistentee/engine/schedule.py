"""RowStates, the rows under way, and schedules: which rows run next, and which stage of their newest token.

The stages of a token are the segments, each of which ends at an exit; then, wherever it exits, what lies behind all
exits: the last layers, if every token runs them, and the LM head; and at last the new token is read from the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.engine.cache import RowNumbers, Rows, RowTensors
from consistentee.engine.transcript import Transcript

FREE = -1


@dataclass
class RowStates:
    """State of the rows under way, each in a slot. Arrays are indexed by slot.

    Attributes:
        newest: the newest token, int64, on the device.
        texts: transcripts.
        stages: the stage that a row waits for, or runs; ``FREE`` where a slot has no row.
        planned_exits, exit_layers: the exit of the newest token, if the rule knows it in advance, and once it is known.
        tokens: how many a row has, as if all rows had begun together.
        since: the turn after which a row came to its stage.
        kept: tensors that rows wait with.
        turn: how often a schedule has chosen rows to run.
    """

    newest: Tensor
    texts: NDArray[np.object_]
    stages: RowNumbers
    planned_exits: RowNumbers
    exit_layers: RowNumbers
    tokens: RowNumbers
    since: RowNumbers
    kept: RowTensors
    turn: int = 0

    @classmethod
    def empty(cls, slots: int, device: torch.device) -> "RowStates":
        """Return free slots."""
        planned, exits, tokens, since = np.zeros((4, slots), dtype=np.int64)
        newest, texts = torch.zeros(slots, dtype=torch.long, device=device), np.full(slots, None)
        return cls(newest, texts, np.full(slots, FREE), planned, exits, tokens, since, RowTensors(slots))

    @property
    def taken(self) -> RowNumbers:
        """Slots that are not free."""
        return np.flatnonzero(self.stages != FREE)

    def enter(self, slots: RowNumbers, texts: Sequence[Transcript], layer: int) -> None:
        """Begin texts, whose first token is read off layer ``layer``; they count as level with the slowest."""
        self.texts[slots] = texts
        self.exit_layers[slots] = layer
        self.tokens[slots] = self.tokens[self.taken].min(initial=self.tokens.max() + 1) - 1

    def wait(self, slots: RowNumbers, stage: int) -> None:
        """Let rows wait for a stage; before stage 0, they have a token more."""
        self.stages[slots] = stage
        self.since[slots] = self.turn
        if stage == 0:
            self.tokens[slots] += 1

    def keep(self, rows: Rows) -> None:
        """Drop all slots but these."""
        for name in ("texts", "stages", "planned_exits", "exit_layers", "tokens", "since"):
            setattr(self, name, getattr(self, name)[rows.numbers])
        self.newest = rows.of(self.newest).clone()
        self.kept.keep(rows)


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
