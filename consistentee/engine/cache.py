"""Rows of a batch, on the host and on the device; and a cache of their keys and values.

A column is a position in a row. A token that exits after layer t leaves its column empty in layers t + 1 to L, until a
later token of its row reads them. Stock attention reads a hole without an error, so every read is checked.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

RowNumbers = NDArray[np.int64]


class Indices:
    """Copy whole numbers to the device: all that were added before one of them is read go in one copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[Index] = []

    def add(self, numbers: RowNumbers) -> "Index":
        """Return numbers [n] that are copied when they are first read."""
        index = Index(numbers, self)
        self._waiting.append(index)
        return index

    def send(self) -> None:
        """Copy all that wait."""
        numbers = [index.numbers for index in self._waiting]
        together = torch.from_numpy(np.concatenate(numbers)).to(self._device)
        for index, part in zip(self._waiting, together.split([len(part) for part in numbers]), strict=True):
            index.sent = part
        self._waiting.clear()


class Index:
    """Whole numbers [n], on the host and, once they are read there, on the device."""

    def __init__(self, numbers: RowNumbers, indices: Indices, sent: Tensor | None = None) -> None:
        self.numbers = numbers
        self.sent = sent
        self._indices = indices

    @property
    def tensor(self) -> Tensor:
        """The numbers on the device: int64 [n]."""
        if self.sent is None:
            self._indices.send()
        assert self.sent is not None
        return self.sent


class Rows:
    """Some rows of a batch, in increasing order; if they lie together, they are a slice, which copies nothing."""

    def __init__(self, numbers: RowNumbers, indices: Indices, sent: Tensor | None = None) -> None:
        self.numbers = numbers
        self.index = indices.add(numbers) if sent is None else Index(numbers, indices, sent)
        self.indices = indices
        self.together = len(numbers) > 0 and int(numbers[-1]) - int(numbers[0]) + 1 == len(numbers)
        self._slice = slice(int(numbers[0]), int(numbers[-1]) + 1) if self.together else None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def in_torch(self) -> slice | Tensor:
        """Index that selects these rows from a tensor of the whole batch."""
        return self.index.tensor if self._slice is None else self._slice

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Take these rows of a tensor of the whole batch: a view, or the tensor itself, where that is possible."""
        if self._slice is None:
            return tensor.index_select(dim, self.index.tensor)
        if len(self) == tensor.shape[dim]:
            return tensor
        return tensor.narrow(dim, self._slice.start, len(self))

    def take(self, places: RowNumbers) -> "Rows":
        return Rows(self.numbers[places], self.indices)


class RowTensors:
    """Tensors that the rows of a batch wait with, by stage and name: their shape may change from stage to stage."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._tensors: dict[tuple[int, str], Tensor] = {}

    def put(self, stage: int, rows: Rows, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies of tensors [rows, ...] of rows that wait for a stage."""
        for name, tensor in tensors.items():
            if (stage, name) not in self._tensors:
                self._tensors[stage, name] = tensor.new_zeros(self._rows, *tensor.shape[1:])
            self._tensors[stage, name][rows.in_torch] = tensor

    def get(self, stage: int, rows: Rows) -> dict[str, Tensor]:
        """Return the tensors that rows have waited with for a stage."""
        return {name: rows.of(tensor) for (place, name), tensor in self._tensors.items() if place == stage}

    def keep(self, rows: Rows) -> None:
        self._rows = len(rows)
        self._tensors = {place: rows.of(tensor).clone() for place, tensor in self._tensors.items()}


class CacheHoleError(RuntimeError):
    """A layer was about to read keys and values that are not there: an error in this library, never in its input."""


class Ledger:
    """Account of which columns every layer has of every row: they are stored in order, so one number describes them.

    Attributes:
        lengths: number of columns that have begun, of every row: int64 [rows].
        stored: number of columns that every layer has of every row: int64 [layers, rows].
    """

    def __init__(self, num_layers: int, rows: int) -> None:
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.stored = np.zeros((num_layers, rows), dtype=np.int64)

    def write(
        self, layers: range, rows: RowNumbers, starts: int | RowNumbers, end: int | RowNumbers, *, then_read: bool
    ) -> None:
        """Record that columns ``starts`` to ``end - 1`` of some rows are written at some layers (1-based).

        Raises CacheHoleError if they do not follow the stored columns, or are not the last ones before a read.
        """
        stored = self.stored[layers.start - 1 : layers.stop - 1]
        if (stored[:, rows] != starts).any():
            raise CacheHoleError(
                f"layers {layers}: columns from {starts} on are written where {stored[:, rows]} are stored"
            )
        stored[:, rows] = end
        if then_read and (self.lengths[rows] != end).any():
            raise CacheHoleError(
                f"layers {layers}: stored {end} of {self.lengths[rows]} columns, when rows {rows} read"
            )

    def keep(self, rows: RowNumbers) -> None:
        self.lengths, self.stored = self.lengths[rows], self.stored[:, rows]

    def take_back(self, columns: int) -> None:
        """Forget what layers have stored of the last columns of all rows: they miss them again."""
        self.stored = self.stored.clip(max=self.lengths - columns)

    def rewind(self, columns: int) -> None:
        """Forget the last columns of all rows. Raises CacheHoleError while a layer misses any."""
        if (self.stored != self.lengths).any():
            raise CacheHoleError("columns cannot be taken back while layers miss some")
        self.lengths, self.stored = self.lengths - columns, self.stored - columns


class MissingColumns(NamedTuple):
    """The columns ``starts`` to ``ends - 1`` of some rows [rows] that a layer misses; and one by one: [missing]."""

    rows: RowNumbers
    starts: RowNumbers
    ends: RowNumbers
    row_index: Index
    column_index: Index


class KeyValueCache:
    """Preallocated keys and values of every layer, and their ledger.

    Attributes:
        stored: [layers, rows, 2 * kv_heads, columns, head_dim], keys first; ``layers`` has the parts of it.
    """

    def __init__(
        self, model: MultiExitDecoder, rows: int, columns: int, indices: Indices, *, more_layers: int = 0
    ) -> None:
        """Allocate, with ``more_layers`` behind layer L. Raises UserError where there is no memory for it."""
        layers, dtype = model.num_layers + more_layers, model.backbone.dtype
        shape = (layers, rows, 2 * model.stepper.kv_heads, columns, model.stepper.head_dim)
        needed = math.prod(shape) * dtype.itemsize
        refused = UserError(
            f"keys and values of {rows} rows of up to {columns} tokens take {needed / 2**30:,.1f} GiB, which cannot be "
            "had: ask for fewer rows at a time or new tokens, or cut prompts with max_prompt_tokens"
        )
        if model.device.type == "cpu" and needed > psutil.virtual_memory().total:
            raise refused  # Linux would promise it, and kill the process later
        try:
            self.stored = torch.empty(shape, dtype=dtype, device=model.device)
        except (MemoryError, RuntimeError) as error:
            raise refused from error
        self.layers = self.stored.unbind()
        self.ledger = Ledger(layers, rows)
        self._indices = indices

    def clear(self, rows: Rows, begin: int) -> None:
        """Write zeros into columns from ``begin`` on: a NaN there would pass through any mask."""
        self.stored[:, rows.in_torch, :, begin:] = 0

    def starts(self, layer: int, rows: Rows) -> RowNumbers:
        """Return the first column that layer ``layer`` (1-based) does not have yet, for some rows: int64 [rows]."""
        return self.ledger.stored[layer - 1, rows.numbers]

    def missing(self, layer: int, rows: Rows, ends: RowNumbers) -> MissingColumns | None:
        """Return the columns before ``ends`` [rows] of some rows that layer ``layer`` (1-based) misses, if any."""
        starts = self.starts(layer, rows)
        counts = ends - starts
        some = counts > 0
        if not some.any():
            return None
        row_index = np.repeat(rows.numbers, counts)
        # Of every row starts, starts + 1, ..., ends - 1: a count over all rows, less the counts of rows before.
        column_index = np.arange(len(row_index)) + np.repeat(ends - counts.cumsum(), counts)
        index = self._indices.add(row_index), self._indices.add(column_index)
        return MissingColumns(rows.numbers[some], starts[some], ends[some], *index)

    def fill(self, layers: range, missing: MissingColumns, keys: Tensor, values: Tensor) -> None:
        """Write missing columns of layers (1-based); keys, values: [layers, 1, kv_heads, missing, head_dim]."""
        self.ledger.write(layers, missing.rows, missing.starts, missing.ends, then_read=False)
        new = torch.cat([keys, values], dim=2)[:, 0].permute(2, 0, 1, 3)
        row_index, column_index = missing.row_index.tensor, missing.column_index.tensor
        self.stored[layers.start - 1 : layers.stop - 1, row_index, :, column_index] = new

    def keep(self, rows: Rows) -> None:
        """Drop all rows but these; in place and layer by layer, so that no second copy of the whole is made."""
        self.ledger.keep(rows.numbers)
        for stored in self.layers:
            stored[: len(rows)] = rows.of(stored).clone()
        self.stored = self.stored[:, : len(rows)]
        self.layers = self.stored.unbind()
