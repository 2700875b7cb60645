"""KeyValueCache: keys and values of a batch whose rows leave at different layers, and a ledger of its content.

A column is a place in the batch: prompts are padded on the left, so that every row's newest token lies in the same
column. A token that leaves after layer t writes nothing into layers t + 1 to L: it *owes* them its column, until a
later token of its row reads such a layer. Stock attention runs silently over a hole, so the account is checked at every
read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        self._index = None if together else torch.from_numpy(numbers).to(device)
        self.device = device

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

    def advance(self, columns: int | RowNumbers) -> None:
        """Begin new columns, so many of every row, or int64 [rows]: every layer owes them."""
        self.lengths = self.lengths + columns

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

    def take_back(self, column: int) -> None:
        """Forget what layers have stored from a column on: they owe it again."""
        self.stored = self.stored.clip(max=column)

    def rewind(self, length: int) -> None:
        """Forget the columns from ``length`` on. Raises CacheHoleError while any column is owed."""
        if (self.stored != self.lengths).any():
            raise CacheHoleError("columns cannot be taken back while layers are owed some")
        self.lengths, self.stored = self.lengths.clip(max=length), self.stored.clip(max=length)


@dataclass(frozen=True)
class OwedColumns:
    """The columns ``starts`` to ``ends - 1`` that some rows owe [rows]; and one by one, on the device: int64 [owed]."""

    rows: RowNumbers
    starts: RowNumbers
    ends: RowNumbers
    row_index: Tensor
    column_index: Tensor


class KeyValueCache:
    """Preallocated keys and values of every layer, [rows, kv_heads, columns, head_dim] each, and their ledger.

    ``more_layers``: how many layers there are behind layer L, as of a branch that drafts.
    """

    def __init__(self, model: MultiExitDecoder, rows: int, columns: int, *, more_layers: int = 0) -> None:
        shape = (rows, model.stepper.kv_heads, columns, model.stepper.head_dim)
        options, layers = {"dtype": model.backbone.dtype, "device": model.device}, model.num_layers + more_layers
        self.keys = [torch.empty(shape, **options) for _ in range(layers)]
        self.values = [torch.empty(shape, **options) for _ in range(layers)]
        self.ledger = Ledger(layers, rows)
        self._device = model.device

    @property
    def length(self) -> int:
        """Number of columns that have begun, where all rows have as many."""
        return int(self.ledger.lengths[0])

    def pad(self, rows: Rows, columns: int) -> None:
        """Write zeros into the first columns of some rows at every layer: a NaN there would pass through any mask."""
        if not columns:
            return
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True), start=1):
            self.ledger.write(layer, rows.in_numpy, 0, columns, then_read=False)
            zeros = keys.new_zeros(()).expand(len(rows), keys.shape[1], columns, keys.shape[3])
            rows.put_columns(keys, 0, columns, zeros)
            rows.put_columns(values, 0, columns, zeros)

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
        return OwedColumns(
            rows.numbers[owing],
            starts[owing],
            ends[owing],
            torch.from_numpy(row_index).to(self._device),
            torch.from_numpy(column_index).to(self._device),
        )

    def fill(self, layer: int, owed: OwedColumns, keys: Tensor, values: Tensor) -> None:
        """Write owed columns at layer ``layer`` (1-based); keys and values are [1, kv_heads, owed, head_dim]."""
        self.ledger.write(layer, owed.rows, owed.starts, owed.ends, then_read=False)
        place = (owed.row_index, slice(None), owed.column_index)
        self.keys[layer - 1][place] = keys[0].transpose(0, 1)
        self.values[layer - 1][place] = values[0].transpose(0, 1)

    def keep(self, rows: Rows) -> None:
        """Drop all rows but these; layer by layer, so that no second copy of the whole is made."""
        self.ledger.keep(rows.numbers)
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = rows.of(tensor).clone()

    def copy_of(self, columns: int) -> list[Tensor]:
        """Return a copy of the first columns of all rows, keys of all layers and then values."""
        return [tensor[:, :, :columns].clone() for tensor in (*self.keys, *self.values)]

    def begin_with(self, copied: Sequence[Tensor]) -> None:
        """Begin with what :meth:`copy_of` has given of another cache of as many rows and layers."""
        columns = copied[0].shape[2]
        self.ledger.advance(columns)
        for layer in range(1, len(self.keys) + 1):
            self.ledger.write(layer, slice(None), 0, columns, then_read=True)
        for stored, tensor in zip((*self.keys, *self.values), copied, strict=True):
            stored[:, :, :columns] = tensor


class CacheWindow:
    """The cache as the layers of one pass see it: it is what stock attention takes for its cache."""

    def __init__(
        self, cache: KeyValueCache, rows: Rows, *, first: int, begin: int, end: int, starts: RowNumbers | None = None
    ) -> None:
        """Open a window for some rows.

        Args:
            cache: whose columns these are.
            rows: which rows pass.
            first: the first column they attend to: those before are padding for all of them.
            begin, end: the columns that they write; ``end`` is where what they attend to ends, too.
            starts: int64 [rows], where a row writes from a later column than ``begin`` on; None where none does. What
                is passed before it is there for the sake of the shape, and its keys and values are thrown away.
        """
        self._cache = cache
        self._rows = rows
        self._first = first
        self._begin = begin
        self._end = end
        self._starts = begin if starts is None else starts
        self._written: Tensor | None = None  # bool [rows, 1, end - begin, 1]; None where a row writes all columns
        if starts is not None:
            written = np.arange(begin, end) >= starts[:, None]
            self._written = torch.from_numpy(written)[:, None, :, None].to(rows.device)

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [rows, kv_heads, end - begin, head_dim]; return all that the rows attend to.

        ``layer_index`` counts from 0, as in the stock models. Raises CacheHoleError if any of it is missing.
        """
        cache = self._cache
        cache.ledger.write(layer_index + 1, self._rows.in_numpy, self._starts, self._end, then_read=True)
        return self._exchange(cache.keys[layer_index], keys), self._exchange(cache.values[layer_index], values)

    def _exchange(self, stored: Tensor, new: Tensor) -> Tensor:
        if self._written is not None:
            new = torch.where(self._written, new, self._rows.columns_of(stored, self._begin, self._end))
        self._rows.put_columns(stored, self._begin, self._end, new)
        return self._rows.columns_of(stored, self._first, self._end)
