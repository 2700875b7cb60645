"""Keys and values of the layers that a token skipped: state propagation (CALM), or running them later (FREE).

Both wait until a later token of the same row reads such a layer; a layer that nobody reads again costs nothing.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import OwedColumns, Rows
from consistentee.engine.token_batch import TokenBatch

KVPolicy = Literal["propagate", "exact"]
"""How skipped layers get their keys and values: from the state at the exit, or by running them with a later token."""


class Leg(NamedTuple):
    """Rows before layers that run without a decision (1-based), and what these need on the device.

    Attributes:
        owed: what the rows owe these layers, if anything.
    """

    layers: range
    rows: Rows
    context: DecoderContext
    owed: OwedColumns | None = None


class OwedTokens(ABC):
    """Tokens that left early, with the hidden states they left with, for the layers that they still owe something.

    Attributes:
        states: [rows, columns, width]; the hidden state of a token after the deepest exit that it has come to.
    """

    def __init__(self, batch: TokenBatch) -> None:
        self.batch = batch
        shape = (len(batch), batch.cache.stored.shape[3], batch.stepper.width)
        self.states = torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def leave(self, leg: Leg, hidden: Tensor) -> None:
        """Note the hidden states [rows, 1, width] of a leg behind it, before some rows leave; others change theirs."""
        self.states[leg.rows.index.tensor, leg.context.positions[:, 0]] = hidden[:, 0]

    def keep(self, rows: Rows) -> None:
        self.states = rows.of(self.states).clone()

    def enter(self, layers: range, rows: Rows, context: DecoderContext | None = None) -> Leg:
        """Prepare layers between two exits for the newest tokens of some rows.

        All layers (1-based) are owed the same columns, because no row leaves in between. ``context`` is that of the
        newest tokens, if it is known.
        """
        owed = self.batch.cache.owed(layers[0], rows, self.batch.newest(rows))
        return Leg(layers, rows, context or self.batch.context(rows), owed)

    @abstractmethod
    def run(self, leg: Leg, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layers on states [rows, 1, width], which are first paid what they are owed.

        Returns the states before the last of the layers, and those after it.
        """


class Propagation(OwedTokens):
    """Every skipped layer makes its keys and values of the state at the exit (CALM, section 3.3.1)."""

    def run(self, leg: Leg, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if leg.owed is not None:
            row_index, column_index = leg.owed.row_index.tensor, leg.owed.column_index.tensor
            states = self.states[row_index, column_index].unsqueeze(0)
            rotation = self.batch.rotation(column_index.unsqueeze(0))
            made = self.batch.stepper.keys_values(leg.layers, states, rotation)
            self.batch.cache.fill(leg.layers, leg.owed, *made)
        return self.batch.run_to_exit(leg.layers, hidden, leg.context)


class DeferredRun(OwedTokens):
    """The tokens themselves run the skipped layers, with the newest one (FREE's synchronised decoding).

    Keys and values are those of full depth.
    """

    def run(self, leg: Leg, hidden: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows = self.batch, leg.rows
        if leg.owed is None:
            return batch.run_to_exit(leg.layers, hidden, leg.context)
        starts = batch.cache.starts(leg.layers[0], rows)
        columns = batch.newest_columns(rows, int((batch.newest(rows) - starts).max()) + 1)
        before, add = columns[:, :-1], batch.indices.add
        at, token = (add(places) for places in (before >= starts[:, None]).nonzero())
        row_index, column_index = add(rows.numbers.repeat(before.shape[1])), add(before.clip(min=0).ravel())
        context = batch.context(rows, columns, starts)
        waiting = self.states[row_index.tensor, column_index.tensor].view(len(rows), -1, hidden.shape[-1])
        entered, tokens = batch.run_to_exit(leg.layers, torch.cat([waiting, hidden], dim=1), context)
        if leg.layers[-1] < batch.stepper.num_layers:  # owed columns come row by row, too
            self.states[leg.owed.row_index.tensor, leg.owed.column_index.tensor] = tokens[at.tensor, token.tensor]
        return entered[:, -1:], tokens[:, -1:]


POLICIES: dict[KVPolicy, type[OwedTokens]] = {"propagate": Propagation, "exact": DeferredRun}
