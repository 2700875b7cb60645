"""TokenBatch: rows that are written on over one cache, in step or each at its own pace, and prompts that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistentee.arguments import NotNegative, checked
from consistentee.backbones.decoders import DecoderContext, DecoderStepper
from consistentee.engine.cache import KeyValueCache, RowNumbers, Rows
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


class CacheWindow:
    """The cache as the layers of one pass see it: it is what stock attention takes for its cache."""

    def __init__(
        self, cache: KeyValueCache, rows: Rows, columns: RowNumbers, starts: RowNumbers, ends: RowNumbers
    ) -> None:
        """Open a window.

        Args:
            cache, rows: which rows of which cache pass.
            columns: those that they pass, one after the other: int64 [rows, T].
            starts, ends: a row's keys and values are new from column ``starts`` on, and count up to ``ends``: int64
                [rows]. What is passed before and behind these columns is there for the sake of the shape.
        """
        self._cache = cache
        self._rows = rows
        self._starts = starts
        self._ends = ends
        self._read = int(columns[:, -1].max()) + 1
        written = columns >= starts[:, None]
        self._block = bool(written.all() and (columns == columns[0]).all())  # the same columns of every row
        self._begin, self._end = int(columns[0, 0]), int(columns[0, -1]) + 1
        if not self._block:
            at, token = (rows.on_device(numbers) for numbers in written.nonzero())
            self._taken = (slice(None), slice(None), 0) if columns.shape[1] == 1 else (at, slice(None), token)
            self._place = rows.on_device(rows.numbers)[at], slice(None), rows.on_device(columns[written])

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [rows, kv_heads, T, head_dim]; return all that the rows may attend to.

        ``layer_index`` counts from 0, as in the stock models. Raises CacheHoleError if any of it is missing.
        """
        self._cache.ledger.write(layer_index + 1, self._rows.in_numpy, self._starts, self._ends, then_read=True)
        stored, new = self._cache.layers[layer_index], torch.cat([keys, values], dim=1)
        if self._block:
            self._rows.put_columns(stored, self._begin, self._end, new)
        else:
            stored[self._place] = new[self._taken]
        heads, read = keys.shape[1], self._rows.columns_of(stored, 0, self._read)
        return read[:, :heads], read[:, heads:]


@dataclass(frozen=True, eq=False)
class Span:
    """Columns of some rows, the newest last, that pass layers together.

    Attributes:
        context: what the layers need.
        columns: which ones, int64 [rows, T] on the device. Rows that have fewer to write than others pass columns that
            they have, or none at all, for the sake of the shape; what comes of these is thrown away.
        written: those that a row writes, bool [rows, T] on the device.
    """

    context: DecoderContext
    columns: Tensor
    written: Tensor


PASS_IN_TOKENS = 16
"""Fixed cost of a pass on a CPU, in tokens: it reads all weights once."""


def pass_sizes(lengths: Sequence[int]) -> list[int]:
    """Return how many rows to read in each pass, the longest first, so that padding and passes cost least."""
    best: list[tuple[int, list[int]]] = [(0, [])]
    for end in range(1, len(lengths) + 1):
        starts = range(end)
        costs = [best[start][0] + PASS_IN_TOKENS + lengths[start] * (end - start) for start in starts]
        start = min(starts, key=costs.__getitem__)
        best.append((costs[start], [*best[start][1], end - start]))
    return best[-1][1]


class TokenBatch:
    """A cache with room for some rows. A column is a position: every row begins in column 0, and has its own length.

    Attributes:
        cache: keys and values of the rows.
        prompt_columns: number of tokens of each row's prompt, int64 [rows].
        stepper, device, dtype: of the model.
    """

    def __init__(self, model: MultiExitDecoder, rows: int, columns: int, *, more_layers: int = 0) -> None:
        """Make room for ``rows`` rows of at most ``columns`` tokens; see :class:`KeyValueCache`."""
        self.stepper = model.stepper
        self.device = model.device
        self.dtype: torch.dtype = model.backbone.dtype
        self.cache = KeyValueCache(model, rows, columns, more_layers=more_layers)
        self.prompt_columns = np.zeros(rows, dtype=np.int64)
        self._pad_id = model.pad_id
        self._causal_by_itself = model.backbone.config._attn_implementation == "sdpa"
        self._columns = torch.arange(columns, device=self.device)
        self._like = torch.empty(0, dtype=self.dtype, device=self.device)

    def __len__(self) -> int:
        return len(self.prompt_columns)

    def rows(self, numbers: RowNumbers | None = None) -> Rows:
        """Return rows by their numbers, in increasing order; by default all."""
        return Rows(np.arange(len(self)) if numbers is None else numbers, self.device)

    def read(self, rows: Rows, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Run a prompt in each of some free rows, at full depth: last hidden states after layer L, [rows, width].

        On a CPU, prompts of different lengths run in several passes, where that saves more padding than it costs.
        """
        lengths = self._begin_prompts(rows, prompts)
        last = torch.empty(len(rows), self.stepper.width, dtype=self.dtype, device=self.device)
        passes = [np.arange(len(lengths))]
        if self.device.type == "cpu":
            longest_first = np.argsort(-lengths, kind="stable")
            ends = np.cumsum(pass_sizes(lengths[longest_first].tolist()))[:-1]
            passes = [np.sort(places) for places in np.split(longest_first, ends)]
        for places in passes:
            some, longest = rows.take(places), int(lengths[places].max())
            self.cache.clear(some, longest)
            padded = [[*prompts[place], *[self._pad_id] * int(longest - lengths[place])] for place in places]
            columns = np.tile(np.arange(longest), (len(places), 1))
            context = self._context(some, columns, np.zeros_like(places), lengths[places])
            hidden = self.stepper.embed(torch.tensor(padded, device=self.device), context.positions)
            hidden = self.run(range(1, self.stepper.num_layers + 1), hidden, context)
            last[places.tolist()] = hidden[torch.arange(len(places)), torch.from_numpy(lengths[places] - 1)]
        return last

    def read_again(self, prompts: Sequence[Sequence[int]], layers: Sequence[Tensor]) -> None:
        """Read prompts in all rows, as :meth:`read`, whose keys and values by layer another batch has made."""
        lengths = self._begin_prompts(self.rows(), prompts)
        columns = int(lengths.max())
        self.cache.clear(self.rows(), columns)
        for layer, (stored, known) in enumerate(zip(self.cache.layers, layers, strict=True), start=1):
            self.cache.ledger.write(layer, slice(None), 0, lengths, then_read=True)
            stored[:, :, :columns] = known

    def _begin_prompts(self, rows: Rows, prompts: Sequence[Sequence[int]]) -> RowNumbers:
        lengths = np.array([len(prompt) for prompt in prompts])
        self.prompt_columns[rows.numbers] = lengths
        self.begin(rows, lengths)
        return lengths

    def begin(self, rows: Rows, columns: int | RowNumbers = 1) -> None:
        """Begin columns of some rows, so many of each: new tokens are about to be read."""
        self.cache.ledger.lengths[rows.numbers] += columns

    def free(self, numbers: RowNumbers) -> None:
        """Forget some rows, given by number."""
        self.cache.ledger.clear(numbers)
        self.prompt_columns[numbers] = 0

    def keep(self, rows: Rows) -> None:
        """Drop all rows but these."""
        self.cache.keep(rows)
        self.prompt_columns = self.prompt_columns[rows.numbers]

    def newest(self, rows: Rows) -> RowNumbers:
        """Return the column of the newest token of some rows: int64 [rows]."""
        return self.cache.ledger.lengths[rows.numbers] - 1

    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the places of tokens among the new ones of their rows, given by row and column."""
        return column_index - torch.from_numpy(self.prompt_columns).to(self.device)[row_index]

    def context(self, rows: Rows, tokens: int = 1) -> DecoderContext:
        """Return what layers need to pass the newest tokens of some rows, so many of each."""
        ends = self.newest(rows) + 1
        return self._context(rows, ends[:, None] + np.arange(-tokens, 0), ends - tokens, ends)

    def span(self, rows: Rows, starts: RowNumbers) -> Span:
        """Return the columns from ``starts`` [rows] to the newest ones, for the layers to pass."""
        ends = self.newest(rows) + 1
        columns = ends[:, None] + np.arange(-int((ends - starts).max()), 0)
        context = self._context(rows, columns, starts, ends)
        return Span(context, rows.on_device(columns), rows.on_device(columns >= starts[:, None]))

    def _context(self, rows: Rows, columns: RowNumbers, starts: RowNumbers, ends: RowNumbers) -> DecoderContext:
        positions = rows.on_device(columns).clamp_min(0)
        begins_all = columns.shape[1] > 1 and not columns[:, 0].any()
        mask = None
        if not (begins_all and self._causal_by_itself) and (columns != columns[0, -1]).any():
            longest = int(columns[:, -1].max()) + 1
            hidden = self._columns[:longest] > positions.unsqueeze(-1)
            # An additive mask is what all attention functions of transformers but flash attention take; a boolean one
            # would be turned into it again in every layer.
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(hidden, torch.finfo(self.dtype).min).unsqueeze(1)
        window = CacheWindow(self.cache, rows, columns, starts, ends)
        return DecoderContext(positions, self.rotation(positions), mask, window)

    def rotation(self, positions: Tensor) -> object:
        """Return what layers need of positions [rows, T]."""
        return self.stepper.rotation(self._like, positions)

    def run(self, layers: range, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run some layers (1-based), one after the other: [rows, T, width] -> [rows, T, width]."""
        for layer in layers:
            hidden = self.stepper.step(layer, hidden, context)
        return hidden


_Key = tuple[DecoderStepper, tuple[tuple[int, ...], ...]]


@checked
class ReadPrompts:
    """Keys, values and last states of prompts, which depend on no rule and no knob.

    For callers that decode the same prompts many times with the same weights, as a sweep over knobs does: reading 256
    tokens costs a CPU several times what writing 48 does. Batches are found again if they hold the same prompts in the
    same order, and a batch for which there is no room is read each time. Weights must not change meanwhile.
    """

    def __init__(self, max_bytes: NotNegative = 2 * 2**30) -> None:
        """``max_bytes``: what is kept at most, on the device of the model."""
        self._room = max_bytes
        self._read: dict[_Key, tuple[Tensor, list[Tensor]]] = {}

    def states(self, batch: TokenBatch, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`TokenBatch.read`, in all rows of a batch, of prompts that may have been read before."""
        key = batch.stepper, tuple(map(tuple, prompts))
        if key in self._read:
            states, layers = self._read[key]
            batch.read_again(prompts, layers)
            return states
        states = batch.read(batch.rows(), prompts)
        layers = [stored[:, :, : max(map(len, prompts))] for stored in batch.cache.layers]
        needed = states.nbytes + sum(layer.nbytes for layer in layers)
        if needed <= self._room:
            self._room -= needed
            self._read[key] = states, [layer.clone() for layer in layers]
        return states
