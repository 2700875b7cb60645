"""Rows: some rows of a batch, as numbers on the host and as an index on the device; and tensors of all its rows."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """Whole numbers [n], on the host and, once they are needed there, on the device."""

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
    """Some rows of a batch, in increasing order; if they lie together, they are taken as a slice, which copies nothing.

    Attributes:
        together: whether no row lies between them.
    """

    def __init__(self, numbers: RowNumbers, indices: Indices, sent: Tensor | None = None) -> None:
        """``sent``: the numbers on the device, where they are there already."""
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
        """Return the rows at some places among these."""
        return Rows(self.numbers[places], self.indices)


class RowTensors:
    """Tensors that rows of a batch wait with, by stage and name: their shape may change from stage to stage."""

    def __init__(self, rows: int) -> None:
        """``rows``: number of rows of the batch."""
        self._rows = rows
        self._tensors: dict[tuple[int, str], Tensor] = {}
        self._own: set[tuple[int, str]] = set()

    def put(self, stage: int, rows: Rows, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors [rows, ...] of rows that wait for a stage; those of all rows are neither copied nor changed."""
        for name, tensor in tensors.items():
            place = stage, name
            if len(rows) == self._rows:
                self._tensors[place] = tensor
                self._own.discard(place)
                continue
            if place not in self._own:
                known = self._tensors.get(place)
                self._tensors[place] = (
                    tensor.new_zeros(self._rows, *tensor.shape[1:]) if known is None else known.clone()
                )
                self._own.add(place)
            self._tensors[place][rows.in_torch] = tensor

    def get(self, stage: int, rows: Rows) -> dict[str, Tensor]:
        """Return the tensors that rows have waited with for a stage."""
        return {name: rows.of(tensor) for (place, name), tensor in self._tensors.items() if place == stage}

    def keep(self, rows: Rows) -> None:
        """Drop all rows but these."""
        self._rows = len(rows)
        self._tensors = {place: rows.of(tensor).clone() for place, tensor in self._tensors.items()}
        self._own = set(self._tensors)
