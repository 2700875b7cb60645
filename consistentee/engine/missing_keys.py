"""Keys and values of the layers that a token skipped: state propagation (CALM), or running them later (FREE).

Both wait until a later token of the same row reads such a layer; a layer that no token reads again costs nothing.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import MissingColumns, RowNumbers, Rows
from consistentee.engine.token_batch import TokenBatch

KVPolicy = Literal["propagate", "exact"]
"""How skipped layers get their keys and values: from the state at the exit, or by running them with a later token."""


class Segment(NamedTuple):
    """Layers between two exits (1-based), the rows that run them, and the context of the rows' newest tokens.

    ``missing``: columns of the rows that all of the layers miss, if any: no row exits in between.
    """

    layers: range
    rows: Rows
    context: DecoderContext
    missing: MissingColumns | None


class MissingKeys(ABC):
    """Fill in missing keys and values, from the hidden states at the exits."""

    def __init__(self, batch: TokenBatch) -> None:
        self.batch = batch
        shape = (len(batch), batch.cache.stored.shape[3], batch.stepper.width)
        # [rows, columns, width]: the hidden state of a token after the last layer that it has run.
        self.states = torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def prepare(self, layers: range, numbers: RowNumbers) -> Segment:
        """Prepare layers between two exits for the newest tokens of some rows; all indices are copied at once."""
        rows = self.batch.rows(numbers)
        missing = self.batch.cache.missing(layers[0], rows, self.batch.newest(rows))
        return Segment(layers, rows, self.batch.newest_context(rows), missing)

    def note(self, segment: Segment, hidden: Tensor) -> None:
        """Note the hidden states [rows, 1, width] after a segment, before some of its rows exit."""
        self.states[segment.rows.index.tensor, segment.context.positions[:, 0]] = hidden[:, 0]

    def keep(self, rows: Rows) -> None:
        self.states = rows.of(self.states).clone()

    @abstractmethod
    def run(self, segment: Segment, hidden: Tensor) -> Tensor:
        """Fill in what the layers miss, and run them on states [rows, 1, width]."""


class Propagation(MissingKeys):
    """Every skipped layer makes its keys and values of the state at the exit (CALM, section 3.3.1)."""

    def run(self, segment: Segment, hidden: Tensor) -> Tensor:
        layers, batch, missing = segment.layers, self.batch, segment.missing
        if missing is not None:
            row_index, column_index = missing.row_index.tensor, missing.column_index.tensor
            states = self.states[row_index, column_index].unsqueeze(0)
            made = batch.stepper.keys_values(layers, states, batch.rotation(column_index.unsqueeze(0)))
            batch.cache.fill(layers, missing, *made)
        return batch.run(layers, hidden, segment.context)


class DeferredRun(MissingKeys):
    """The tokens themselves run the skipped layers, with the newest one (FREE's synchronised decoding).

    Keys and values are those of full depth.
    """

    def run(self, segment: Segment, hidden: Tensor) -> Tensor:
        layers, batch, rows, missing = segment.layers, self.batch, segment.rows, segment.missing
        if missing is None:
            return batch.run(layers, hidden, segment.context)
        starts = batch.cache.starts(layers[0], rows)
        columns = batch.newest_columns(rows, int((batch.newest(rows) - starts).max()) + 1)
        before, add = columns[:, :-1], batch.indices.add
        at, token = (add(places) for places in (before >= starts[:, None]).nonzero())
        row_index, column_index = add(rows.numbers.repeat(before.shape[1])), add(before.clip(min=0).ravel())
        context = batch.context(rows, columns, starts)
        waiting = self.states[row_index.tensor, column_index.tensor].view(len(rows), -1, hidden.shape[-1])
        tokens = batch.run(layers, torch.cat([waiting, hidden], dim=1), context)
        if layers[-1] < batch.stepper.num_layers:  # missing columns come row by row, too
            self.states[missing.row_index.tensor, missing.column_index.tensor] = tokens[at.tensor, token.tensor]
        return tokens[:, -1:]


POLICIES: dict[KVPolicy, type[MissingKeys]] = {"propagate": Propagation, "exact": DeferredRun}
