"""KeyValueCache: keys and values of a batch whose rows leave at different layers, and a ledger of its content.

A column is a position in a row. A token that leaves after layer t writes nothing into layers t + 1 to L: it *owes* them
its column, until a later token of its row reads such a layer. Stock attention runs silently over a hole, so the account
is checked at every read.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

RowNumbers = NDArray[np.int64]
RowIndex = slice | RowNumbers


class CacheHoleError(RuntimeError):
    """A layer was about to read keys and values that are not there: an error in this library, never in its input."""


class Rows:
    """Some rows of a batch, in increasing order; neighbours are taken as a slice, which copies nothing."""

    def __init__(self, numbers: RowNumbers, device: torch.device) -> None:
        """``numbers``: at least one."""
        self.numbers = numbers
        first, last = int(numbers[0]), int(numbers[-1])
        together = last - first + 1 == len(numbers)
        self._slice = slice(first, last + 1) if together else None
        self.device = device
        self._index = None if together else self.on_device(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def in_numpy(self) -> RowIndex:
        """Index that selects these rows from an array of the whole batch."""
        return self.numbers if self._slice is None else self._slice

    def of(self, tensor: Tensor) -> Tensor:
        """Take these rows of a tensor of the whole batch: a view where that is possible."""
        return tensor[self._slice] if self._index is None else tensor.index_select(0, self._index)

    def columns_of(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """Take columns ``begin`` to ``end - 1`` of these rows: [batch, heads, columns, ...] -> [rows, heads, ...]."""
        if self._index is None:
            return tensor[self._slice, :, begin:end]  # in one go: this runs twice a layer
        return tensor[:, :, begin:end].index_select(0, self._index)

    def on_device(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def put(self, tensor: Tensor, values: Tensor) -> None:
        if self._index is None:
            tensor[self._slice] = values
        else:
            tensor.index_copy_(0, self._index, values)

    def put_columns(self, tensor: Tensor, begin: int, end: int, values: Tensor) -> None:
        """Write columns ``begin`` to ``end - 1`` of these rows."""
        if self._index is None:
            tensor[self._slice, :, begin:end] = values
        else:
            tensor[:, :, begin:end].index_copy_(0, self._index, values)

    def take(self, places: list[int] | RowNumbers) -> "Rows":
        """Return the rows at some places among these."""
        return Rows(self.numbers[places], self.device)


class Ledger:
    """Account of which columns every layer has of every row, checked at every read.

    A layer's columns of a row are stored in order, without a gap, so that one number describes them.

    Attributes:
        lengths: number of columns that have begun, of every row: int64 [rows].
        stored: number of columns that every layer has of every row: int64 [layers, rows].
    """

    def __init__(self, num_layers: int, rows: int) -> None:
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.stored = np.zeros((num_layers, rows), dtype=np.int64)

    def write(
        self, layer: int, rows: RowIndex, starts: int | RowNumbers, end: int | RowNumbers, *, then_read: bool
    ) -> None:
        """Record that columns ``starts`` to ``end - 1`` of some rows are written at layer ``layer`` (1-based).

        Raises CacheHoleError if they do not follow the stored columns, or if the rows then read the layer and it has
        not all of their columns.
        """
        stored = self.stored[layer - 1]
        if (stored[rows] != starts).any():
            raise CacheHoleError(f"layer {layer}: columns from {starts} on are written where {stored[rows]} are stored")
        stored[rows] = end
        if then_read and (self.lengths[rows] != end).any():
            raise CacheHoleError(f"layer {layer}: stored {end} of {self.lengths[rows]} columns, when rows {rows} read")

    def keep(self, rows: RowNumbers) -> None:
        self.lengths, self.stored = self.lengths[rows], self.stored[:, rows]

    def clear(self, rows: RowNumbers) -> None:
        self.lengths[rows] = 0
        self.stored[:, rows] = 0

    def take_back(self, columns: int) -> None:
        """Forget what layers have stored of the last columns of all rows: they owe them again."""
        self.stored = self.stored.clip(max=self.lengths - columns)

    def rewind(self, columns: int) -> None:
        """Forget the last columns of all rows. Raises CacheHoleError while any column is owed."""
        if (self.stored != self.lengths).any():
            raise CacheHoleError("columns cannot be taken back while layers are owed some")
        self.lengths, self.stored = self.lengths - columns, self.stored - columns


@dataclass(frozen=True)
class OwedColumns:
    """The columns ``starts`` to ``ends - 1`` that some rows owe [rows]; and one by one, on the device: int64 [owed]."""

    rows: RowNumbers
    starts: RowNumbers
    ends: RowNumbers
    row_index: Tensor
    column_index: Tensor


class KeyValueCache:
    """Preallocated keys and values of every layer, and their ledger.

    Attributes:
        layers: of each layer [rows, 2 * kv_heads, columns, head_dim], keys first: one read takes both.
    """

    def __init__(self, model: MultiExitDecoder, rows: int, columns: int, *, more_layers: int = 0) -> None:
        """Allocate; ``more_layers``: how many layers there are behind layer L, as of a branch that drafts.

        Raises UserError where there is no memory for it.
        """
        layers, dtype = model.num_layers + more_layers, model.backbone.dtype
        shape = (rows, 2 * model.stepper.kv_heads, columns, model.stepper.head_dim)
        needed = layers * math.prod(shape) * dtype.itemsize
        refused = UserError(
            f"keys and values of {rows} rows of up to {columns} tokens take {needed / 2**30:,.1f} GiB, which cannot be "
            "had: ask for fewer rows at a time or new tokens, or cut prompts with max_prompt_tokens"
        )
        if model.device.type == "cpu" and needed > psutil.virtual_memory().total:
            raise refused  # Linux would promise it, and kill the process later
        try:
            self.layers = [torch.empty(shape, dtype=dtype, device=model.device) for _ in range(layers)]
        except (MemoryError, RuntimeError) as error:
            raise refused from error
        self.ledger = Ledger(layers, rows)

    def clear(self, rows: Rows, begin: int) -> None:
        """Write zeros into columns from ``begin`` on of some rows: a NaN there would pass through any mask."""
        for stored in self.layers:
            _, heads, columns, width = stored.shape
            if begin < columns:
                rows.put_columns(
                    stored, begin, columns, stored.new_zeros(()).expand(len(rows), heads, columns - begin, width)
                )

    def starts(self, layer: int, rows: Rows) -> RowNumbers:
        """Return the first column that layer ``layer`` (1-based) does not have yet, for some rows: int64 [rows]."""
        return self.ledger.stored[layer - 1, rows.numbers]

    def owed(self, layer: int, rows: Rows, ends: RowNumbers) -> OwedColumns | None:
        """Return what some rows owe layer ``layer`` (1-based) before columns ``ends``, or None if they owe nothing.

        ``ends`` is int64 [rows].
        """
        starts = self.starts(layer, rows)
        counts = ends - starts
        owing = counts > 0
        if not owing.any():
            return None
        row_index = np.repeat(rows.numbers, counts)
        # Of every row starts, starts + 1, ..., ends - 1: what is counted over all rows, less what rows before it have.
        column_index = np.arange(len(row_index)) + np.repeat(ends - counts.cumsum(), counts)
        index = rows.on_device(row_index), rows.on_device(column_index)
        return OwedColumns(rows.numbers[owing], starts[owing], ends[owing], *index)

    def fill(self, layer: int, owed: OwedColumns, keys: Tensor, values: Tensor) -> None:
        """Write owed columns at layer ``layer`` (1-based); keys and values are [1, kv_heads, owed, head_dim]."""
        self.ledger.write(layer, owed.rows, owed.starts, owed.ends, then_read=False)
        new = torch.cat([keys, values], dim=1)[0].transpose(0, 1)
        self.layers[layer - 1][owed.row_index, :, owed.column_index] = new

    def keep(self, rows: Rows) -> None:
        """Drop all rows but these; layer by layer, so that no second copy of the whole is made."""
        self.ledger.keep(rows.numbers)
        for layer, stored in enumerate(self.layers):
            self.layers[layer] = rows.of(stored).clone()
