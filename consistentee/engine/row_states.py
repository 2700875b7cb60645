"""RowStates: what is known of every row under way between two stages of its newest token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.engine.rows import RowNumbers, Rows, RowTensors
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
