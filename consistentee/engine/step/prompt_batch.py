"""PromptBatch: prompts padded on the left over a cache: which row sits where, and what each of its columns may see."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.step.cache import CacheWindow, KeyValueCache, RowNumbers, Rows
from consistentee.engine.step.token_batch import Span, TokenBatch
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

PASS_IN_TOKENS = 16
"""What a pass costs a CPU beside its tokens, in tokens: it reads all weights once."""


def pass_sizes(lengths: Sequence[int]) -> list[int]:
    """Return how many rows to read in each pass, so that passes and tokens, padding included, are fewest.

    Args:
        lengths: of the rows, the longest first; rows of one pass are neighbours.
    """
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
        self.cache = KeyValueCache(
            model.stepper,
            len(prompts),
            self.prompt_columns + new_columns,
            dtype=self.dtype,
            device=self.device,
            more_layers=more_layers,
        )
        self._columns = torch.arange(self.prompt_columns + new_columns, device=self.device)
        self._padding = np.array([self.prompt_columns - len(prompt) for prompt in prompts])
        padded = [[model.pad_id] * int(gap) + list(prompt) for gap, prompt in zip(self._padding, prompts, strict=True)]
        self._prompts = torch.tensor(padded, device=self.device)
        self._place_padding()

    def __len__(self) -> int:
        return len(self._padding)

    def all_rows(self) -> Rows:
        """Return every row of the batch."""
        return Rows(np.arange(len(self)), self.device)

    def keep(self, rows: Rows) -> None:
        """Drop all rows but these."""
        self.cache.keep(rows)
        self._padding = self._padding[rows.numbers]
        self._place_padding()

    def prefill(self) -> Tensor:
        """Run the prompts at full depth: the hidden states of their last tokens after layer L, [rows, 1, width].

        On a CPU, prompts of different lengths run in several passes, where that saves more padding than it costs.
        """
        end, layers = self.prompt_columns, range(1, self.stepper.num_layers + 1)
        self.cache.advance(end)
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
        """Return the column of the newest token of some rows, which is the last one: int64 [rows]."""
        return np.full(len(rows), self.cache.length - 1)

    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the places of tokens among the new ones of their rows."""
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
        """Return the columns from ``starts`` [rows] to the newest one, for the layers to pass."""
        begin, end = int(starts.min()), self.cache.length
        context = self.context(rows, begin, end, starts if starts.max() > begin else None)
        columns = self._columns[begin:end].expand(len(rows), -1)
        return Span(context, columns, columns >= torch.from_numpy(starts).to(self.device).unsqueeze(1))

    def positions(self, padding: Tensor, columns: Tensor) -> Tensor:
        """Return the positions of columns behind so much padding; 0 for the padding itself."""
        return (columns - padding).clamp_min_(0)

    def positions_of(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the positions of single tokens, given by row and column: int64 [tokens] each."""
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
