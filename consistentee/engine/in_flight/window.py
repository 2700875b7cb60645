"""Windows on the cache of rows that do not go in step: what stock attention takes for its cache."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.backbones.decoders import DecoderStepper
from consistentee.engine.step.cache import KeyValueCache, RowNumbers, Rows


class SlotCache(KeyValueCache):
    """A cache whose keys and values lie side by side, so that one read takes both: rows are hardly ever neighbours.

    Attributes:
        keys_values: of each layer [rows, 2 * kv_heads, columns, head_dim], keys first; ``keys`` and ``values`` are
            views of it.
    """

    def __init__(
        self, stepper: DecoderStepper, rows: int, columns: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(stepper, rows, 0, dtype=dtype, device=device)
        heads = stepper.kv_heads
        shape = (rows, 2 * heads, columns, stepper.head_dim)
        self.keys_values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(stepper.num_layers)]
        self.keys = [tensor[:, :heads] for tensor in self.keys_values]
        self.values = [tensor[:, heads:] for tensor in self.keys_values]


class PromptWindow:
    """Takes prompts of some rows, padded on the right; each attends to itself alone."""

    def __init__(self, cache: SlotCache, rows: Rows, lengths: RowNumbers) -> None:
        """``lengths``: of the prompts, int64 [rows]."""
        self._cache = cache
        self._rows = rows
        self._lengths = lengths

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [rows, kv_heads, T, head_dim], and return them; ``layer_index`` counts from 0."""
        self._cache.ledger.write(layer_index + 1, self._rows.in_numpy, 0, self._lengths, then_read=True)
        stored, new = self._cache.keys_values[layer_index], torch.cat([keys, values], dim=1)
        columns, room = new.shape[2], stored.shape[2]
        self._rows.put_columns(stored, 0, columns, new)
        if columns < room:  # with zeros: a NaN there would pass through any mask
            zeros = stored.new_zeros(()).expand(*new.shape[:2], room - columns, new.shape[3])
            self._rows.put_columns(stored, columns, room, zeros)
        return keys, values


class SlotWindow:
    """The cache as one pass of some rows sees it, each of them at a column of its own."""

    def __init__(
        self, cache: SlotCache, rows: Rows, columns: RowNumbers, written: NDArray[np.bool_], longest: int
    ) -> None:
        """Open a window.

        Args:
            cache: whose columns these are.
            rows: which rows pass.
            columns: those that they pass, int64 [rows, T], the newest last.
            written: which of these a row writes, bool [rows, T]; the newest among them.
            longest: one past the last column that any of the rows has.
        """
        self._cache = cache
        self._rows = rows
        self._longest = longest
        self._ends = columns[:, -1] + 1
        self._starts = self._ends - written.sum(axis=1)
        at, token = written.nonzero()
        self._taken = None if columns.shape[1] == 1 else (_on(rows, at), slice(None), _on(rows, token))
        self._place = (_on(rows, rows.numbers[at]), slice(None), _on(rows, columns[written]))

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [rows, kv_heads, T, head_dim]; return all that the rows may attend to.

        ``layer_index`` counts from 0. Raises CacheHoleError if anything is missing of what a row has.
        """
        self._cache.ledger.write(layer_index + 1, self._rows.in_numpy, self._starts, self._ends, then_read=True)
        stored, new = self._cache.keys_values[layer_index], torch.cat([keys, values], dim=1)
        stored[self._place] = new[:, :, 0] if self._taken is None else new[self._taken]
        heads = keys.shape[1]
        read = self._rows.columns_of(stored, 0, self._longest)
        return read[:, :heads], read[:, heads:]


def _on(rows: Rows, numbers: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(numbers).to(rows.device)
