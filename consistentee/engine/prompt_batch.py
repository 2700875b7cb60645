"""Rows that are written on over one cache: the interface, and prompts padded on the left, which go in step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consistentee.arguments import NotNegative, checked
from consistentee.backbones.decoders import DecoderContext, DecoderStepper
from consistentee.engine.cache import CacheWindow, KeyValueCache, RowNumbers, Rows
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


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


class TokenBatch(ABC):
    """Rows that are written on over one cache, in step (PromptBatch) or each at its own pace (Slots).

    Attributes:
        cache: their keys and values.
        stepper, device, dtype: of the model.
    """

    cache: KeyValueCache

    def __init__(self, model: MultiExitDecoder) -> None:
        self.stepper = model.stepper
        self.device = model.device
        self.dtype: torch.dtype = model.backbone.dtype
        self._causal_by_itself = model.backbone.config._attn_implementation == "sdpa"
        self._like = torch.empty(0, dtype=self.dtype, device=self.device)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def newest(self, rows: Rows) -> RowNumbers:
        """Return the column of the newest token of some rows: int64 [rows]."""

    @abstractmethod
    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the places of tokens among the new ones of their rows, given by row and column."""

    @abstractmethod
    def positions_of(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the positions of single tokens, given by row and column: int64 [tokens] each."""

    @abstractmethod
    def span(self, rows: Rows, starts: RowNumbers) -> Span:
        """Return the columns from ``starts`` [rows] to the newest ones, for the layers to pass."""

    def rotation(self, positions: Tensor) -> object:
        """Return what layers need of positions [rows, T]."""
        return self.stepper.rotation(self._like, positions)

    def run(self, layers: range, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run some layers (1-based), one after the other: [rows, T, width] -> [rows, T, width]."""
        for layer in layers:
            hidden = self.stepper.step(layer, hidden, context)
        return hidden

    def _bias_where(self, hidden: Tensor) -> Tensor:
        """Return what is added to attention scores: 0, or the lowest number where a column is hidden.

        An additive mask is what all attention functions of transformers but flash attention take; a boolean one would
        be turned into it again in every layer.
        """
        bias = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(hidden, torch.finfo(self.dtype).min)


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


def passes(lengths: RowNumbers, device: torch.device) -> list[RowNumbers]:
    """Return which rows read prompts of such lengths together, in increasing order: all, but for a CPU."""
    if device.type != "cpu":
        return [np.arange(len(lengths))]
    longest_first = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(pass_sizes(lengths[longest_first].tolist()))[:-1]
    return [np.sort(rows) for rows in np.split(longest_first, ends)]


class PromptBatch(TokenBatch):
    """Rows of one batch: their prompts, and a cache with room for these and for ``new_columns`` after them.

    Column 0 is where the longest prompt starts, and all prompts end in the same column.
    """

    def __init__(
        self, model: MultiExitDecoder, prompts: Sequence[Sequence[int]], new_columns: int, *, more_layers: int = 0
    ) -> None:
        """``more_layers``: of the cache, see :class:`KeyValueCache`."""
        super().__init__(model)
        self.prompt_columns = max(len(prompt) for prompt in prompts)
        self.cache = KeyValueCache(model, len(prompts), self.prompt_columns + new_columns, more_layers=more_layers)
        self._columns = torch.arange(self.prompt_columns + new_columns, device=self.device)
        self._padding = np.array([self.prompt_columns - len(prompt) for prompt in prompts])
        padded = [[model.pad_id] * int(gap) + list(prompt) for gap, prompt in zip(self._padding, prompts, strict=True)]
        self._prompts = torch.tensor(padded, device=self.device)
        self._place_padding()

    def __len__(self) -> int:
        return len(self._padding)

    def all_rows(self) -> Rows:
        return Rows(np.arange(len(self)), self.device)

    def keep(self, rows: Rows) -> None:
        self.cache.keep(rows)
        self._padding = self._padding[rows.numbers]
        self._place_padding()

    def prefill(self) -> Tensor:
        """Run the prompts at full depth: the hidden states of their last tokens after layer L, [rows, 1, width].

        On a CPU, prompts of different lengths run in several passes, where that saves more padding than it costs.
        """
        end, layers = self.prompt_columns, range(1, self.stepper.num_layers + 1)
        self.cache.ledger.advance(end)
        last = torch.empty(len(self), 1, self.stepper.width, dtype=self.dtype, device=self.device)
        for together in passes(self.prompt_columns - self._padding, self.device):
            rows = Rows(together, self.device)
            begin = int(self._padding[together].min())
            self.cache.pad(rows, begin)
            context = self.context(rows, begin, end)
            hidden = self.stepper.embed(rows.of(self._prompts)[:, begin:], context.positions)
            rows.put(last, self.run(layers, hidden, context)[:, -1:])
        return last

    def newest(self, rows: Rows) -> RowNumbers:
        return np.full(len(rows), self.cache.length - 1)

    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        return column_index - self.prompt_columns

    def context(self, rows: Rows, begin: int, end: int, starts: RowNumbers | None = None) -> DecoderContext:
        """Return what layers need to pass columns ``begin`` to ``end - 1`` of some rows.

        ``starts`` [rows]: where a row writes only from a later column than ``begin`` on, see :class:`CacheWindow`.
        """
        padding = self._padding[rows.in_numpy]
        first = int(padding.min())
        mask = self._mask(rows, first, begin, end, padded=int(padding.max()) > first)
        positions = self.positions(rows.of(self._padding_on_device).unsqueeze(1), self._columns[begin:end])
        window = CacheWindow(self.cache, rows, first=first, begin=begin, end=end, starts=starts)
        return DecoderContext(positions, self.rotation(positions), mask, window)

    def span(self, rows: Rows, starts: RowNumbers) -> Span:
        begin, end = int(starts.min()), self.cache.length
        context = self.context(rows, begin, end, starts if starts.max() > begin else None)
        columns = self._columns[begin:end].expand(len(rows), -1)
        return Span(context, columns, columns >= torch.from_numpy(starts).to(self.device).unsqueeze(1))

    def positions(self, padding: Tensor, columns: Tensor) -> Tensor:
        """Return the positions of columns behind so much padding; 0 for the padding itself."""
        return (columns - padding).clamp_min_(0)

    def positions_of(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        return self.positions(self._padding_on_device[row_index], column_index)

    def _place_padding(self) -> None:
        self._padding_on_device = torch.from_numpy(self._padding).to(self.device)
        hidden_from_all = self._columns < self._padding_on_device.unsqueeze(1)
        self._bias = self._bias_where(hidden_from_all)[:, None, None]

    def _mask(self, rows: Rows, first: int, begin: int, end: int, *, padded: bool) -> Tensor | None:
        """Return the mask [rows, 1, end - begin, end - first], or None where the stock attention needs none."""
        if end - begin == 1:
            return rows.of(self._bias)[..., first:end] if padded else None
        if begin == first and not padded and self._causal_by_itself:
            return None
        columns = self._columns[first:end]
        hidden = columns > self._columns[begin:end].unsqueeze(1)
        padding = rows.of(self._padding_on_device)[:, None, None]
        return self._bias_where((hidden | (columns < padding)).unsqueeze(1))


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

    def states(self, batch: PromptBatch, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`PromptBatch.prefill`, of prompts that may have been read before; ``batch`` is one of them."""
        key = batch.stepper, tuple(map(tuple, prompts))
        if key in self._read:
            states, columns = self._read[key]
            batch.cache.begin_with(columns)
            return states
        states = batch.prefill()
        cache, columns_read = batch.cache, batch.prompt_columns
        kept = (tensor[:, :, :columns_read].nbytes for tensor in (*cache.keys, *cache.values))
        if (needed := states.nbytes + sum(kept)) <= self._room:
            self._room -= needed
            self._read[key] = states, cache.copy_of(columns_read)
        return states
