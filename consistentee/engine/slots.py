"""Slots: rows that grow at their own pace over one cache; a row that ends makes room for the next prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import KeyValueCache, RowNumbers, Rows
from consistentee.engine.prompt_batch import Span, TokenBatch, passes
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


class SlotCache(KeyValueCache):
    """A cache whose keys and values lie side by side, so that one read takes both: rows are hardly ever neighbours.

    Attributes:
        keys_values: of each layer [rows, 2 * kv_heads, columns, head_dim], keys first; ``keys`` and ``values`` are
            views of it.
    """

    def __init__(self, model: MultiExitDecoder, rows: int, columns: int) -> None:
        super().__init__(model, rows, 0)
        heads = model.stepper.kv_heads
        self.keys_values = [keys.new_empty(rows, 2 * heads, columns, model.stepper.head_dim) for keys in self.keys]
        self.keys = [tensor[:, :heads] for tensor in self.keys_values]
        self.values = [tensor[:, heads:] for tensor in self.keys_values]


class PromptWindow:
    """Takes prompts of some rows, padded on the right; each attends to itself alone."""

    def __init__(self, cache: SlotCache, rows: Rows, lengths: RowNumbers) -> None:
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
            cache, rows: whose columns pass.
            columns: int64 [rows, T], the newest last.
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


class Slots(TokenBatch):
    """A cache with room for some rows. A column is a position: every row begins in column 0, and has its own length.

    Attributes:
        prompt_columns: number of tokens of each row's prompt, int64 [slots].
    """

    cache: SlotCache

    def __init__(self, model: MultiExitDecoder, slots: int, columns: int) -> None:
        """``columns``: the most that a row may have. Raises UserError where so large a cache cannot be had."""
        super().__init__(model)
        self.cache = allocate(model, slots, columns)
        self.prompt_columns = np.zeros(slots, dtype=np.int64)
        self._pad_id = model.pad_id
        self._columns = torch.arange(columns, device=self.device)

    def __len__(self) -> int:
        return len(self.prompt_columns)

    def rows(self, numbers: RowNumbers) -> Rows:
        """Return the rows in some slots, given in increasing order."""
        return Rows(numbers, self.device)

    def read(self, rows: Rows, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Run a prompt in each of some free slots, at full depth: last hidden states after layer L, [rows, width].

        On a CPU, prompts of different lengths run in several passes, where that saves more padding than it costs.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        self.prompt_columns[rows.numbers] = lengths
        begun = np.zeros(len(self), dtype=np.int64)
        begun[rows.numbers] = lengths
        self.cache.ledger.advance(begun)
        last = torch.empty(len(rows), self.stepper.width, dtype=self.dtype, device=self.device)
        for places in passes(lengths, self.device):
            last[places.tolist()] = self._pass(rows.take(places), [prompts[place] for place in places], lengths[places])
        return last

    def _pass(self, rows: Rows, prompts: Sequence[Sequence[int]], lengths: RowNumbers) -> Tensor:
        longest = int(lengths.max())
        padded = [[*prompt, *[self._pad_id] * (longest - len(prompt))] for prompt in prompts]
        positions = self._columns[:longest].expand(len(rows), -1)
        mask = None
        if longest > 1 and not self._causal_by_itself:
            mask = self._bias_where(self._columns[:longest] > self._columns[:longest, None])[None, None]
        window = PromptWindow(self.cache, rows, lengths)
        context = DecoderContext(positions, self.rotation(positions), mask, window)
        hidden = self.stepper.embed(torch.tensor(padded, device=self.device), positions)
        hidden = self.run(range(1, self.stepper.num_layers + 1), hidden, context)
        return hidden[torch.arange(len(rows)), torch.from_numpy(lengths - 1)]

    def begin(self, rows: Rows) -> None:
        """Begin a column of each of some rows: a new token is about to be read."""
        begun = np.zeros(len(self), dtype=np.int64)
        begun[rows.numbers] = 1
        self.cache.ledger.advance(begun)

    def free(self, numbers: RowNumbers) -> None:
        """Forget the rows in some slots."""
        self.cache.ledger.clear(numbers)
        self.prompt_columns[numbers] = 0

    def context(self, rows: Rows) -> DecoderContext:
        """Return what layers need to pass the newest tokens of some rows."""
        columns = self.newest(rows)[:, None]
        return self._context(rows, columns, np.ones_like(columns, dtype=np.bool_))

    def span(self, rows: Rows, starts: RowNumbers) -> Span:
        ends = self.newest(rows) + 1
        columns = ends[:, None] + np.arange(-int((ends - starts).max()), 0)
        written = columns >= starts[:, None]
        context = self._context(rows, columns, written)
        return Span(context, self._on_device(columns), torch.from_numpy(written).to(self.device))

    def _context(self, rows: Rows, columns: RowNumbers, written: np.ndarray) -> DecoderContext:
        newest = columns[:, -1]
        longest = int(newest.max()) + 1
        positions = self._on_device(columns).clamp_min(0)
        mask = None
        if columns.shape[1] > 1 or int(newest.min()) + 1 < longest:
            mask = self._bias_where(self._columns[:longest] > positions.unsqueeze(-1)).unsqueeze(1)
        window = SlotWindow(self.cache, rows, columns, written, longest)
        return DecoderContext(positions, self.rotation(positions), mask, window)

    def newest(self, rows: Rows) -> RowNumbers:
        return self.cache.ledger.lengths[rows.numbers] - 1

    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        return column_index - self._on_device(self.prompt_columns)[row_index]

    def positions_of(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        return column_index

    def _on_device(self, numbers: RowNumbers) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


def allocate(model: MultiExitDecoder, slots: int, columns: int) -> SlotCache:
    """Return an empty cache. Raises UserError where there is no memory for it."""
    stepper, dtype = model.stepper, model.backbone.dtype
    needed = 2 * stepper.num_layers * slots * stepper.kv_heads * columns * stepper.head_dim * dtype.itemsize
    refused = UserError(
        f"keys and values of {slots} rows of up to {columns} tokens take {needed / 2**30:,.1f} GiB, which cannot be "
        "had: ask for fewer rows in flight or new tokens, or cut prompts with max_prompt_tokens"
    )
    if model.device.type == "cpu" and needed > psutil.virtual_memory().total:
        raise refused  # Linux would promise it, and kill the process later
    try:
        return SlotCache(model, slots, columns)
    except (MemoryError, RuntimeError) as error:
        raise refused from error
