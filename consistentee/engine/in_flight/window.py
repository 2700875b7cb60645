"""Windows on the cache of rows that do not go in step: what stock attention takes for its cache."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.engine.cache import Entry, KeyValueCache, RowNumbers, Rows


class PromptWindow:
    """Takes prompts of some rows, padded on the right; each attends to itself alone."""

    def __init__(self, cache: KeyValueCache, rows: Rows, lengths: RowNumbers) -> None:
        """``lengths``: of the prompts, int64 [rows]."""
        self._cache = cache
        self._rows = rows
        self._entry = Entry(rows.in_numpy, 0, lengths, then_read=True)

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [rows, kv_heads, T, head_dim], and return them; ``layer_index`` counts from 0."""
        self._cache.ledger.write(layer_index + 1, self._entry)
        self._put(self._cache.keys[layer_index], keys)
        self._put(self._cache.values[layer_index], values)
        return keys, values

    def _put(self, stored: Tensor, new: Tensor) -> None:
        """Write columns, and zeros into all later ones: a NaN there would pass through any mask."""
        columns, room = new.shape[2], stored.shape[2]
        self._rows.put_columns(stored, 0, columns, new)
        if columns < room:
            zeros = stored.new_zeros(()).expand(*new.shape[:2], room - columns, new.shape[3])
            self._rows.put_columns(stored, columns, room, zeros)


class SlotWindow:
    """The cache as one pass of some rows sees it, each of them at a column of its own."""

    def __init__(
        self, cache: KeyValueCache, rows: Rows, columns: RowNumbers, written: NDArray[np.bool_], longest: int
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
        ends = columns[:, -1] + 1
        self._entry = Entry(rows.in_numpy, ends - written.sum(axis=1), ends, then_read=True)
        at, token = written.nonzero()
        self._taken = None if columns.shape[1] == 1 else (_on(rows, at), slice(None), _on(rows, token))
        self._place = (_on(rows, rows.numbers[at]), slice(None), _on(rows, columns[written]))

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [rows, kv_heads, T, head_dim]; return all that the rows may attend to.

        ``layer_index`` counts from 0. Raises CacheHoleError if anything is missing of what a row has.
        """
        cache = self._cache
        cache.ledger.write(layer_index + 1, self._entry)
        return self._exchange(cache.keys[layer_index], keys), self._exchange(cache.values[layer_index], values)

    def _exchange(self, stored: Tensor, new: Tensor) -> Tensor:
        stored[self._place] = new[:, :, 0] if self._taken is None else new[self._taken]
        return self._rows.columns_of(stored, 0, self._longest)


def _on(rows: Rows, numbers: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(numbers).to(rows.device)
