"""TokenBatch: rows that are decoded over one cache, in step or each at its own pace, and prompts that are kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistentee.arguments import NotNegative, checked
from consistentee.backbones.decoders import DecoderContext, DecoderStepper
from consistentee.engine.cache import Index, Indices, KeyValueCache, RowNumbers, Rows
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


class CacheWindow:
    """The cache as stock attention sees it in one pass; what all layers need is made once."""

    def __init__(
        self, cache: KeyValueCache, rows: Rows, columns: RowNumbers, starts: RowNumbers, column_index: Index
    ) -> None:
        """Open a window for rows that pass ``columns`` [rows, T], of which those from ``starts`` [rows] on are new.

        ``column_index``: the columns on the device.
        """
        self._cache = cache
        self._rows = rows
        self._starts = starts
        self._ends = cache.ledger.lengths[rows.numbers]
        self._recorded = range(0)
        written = columns >= starts[:, None]
        read = cache.stored[..., : int(columns[:, -1].max()) + 1, :]
        self._own: Sequence[Tensor] = ()
        if rows.together:
            own = rows.of(cache.stored, dim=1)
            keys, values = rows.of(read, dim=1).chunk(2, dim=2)
            self._halves = keys.unbind(), values.unbind()
            if written.all() and (columns == columns[0]).all():  # the same columns of every row
                self._own = own[..., int(columns[0, 0]) : int(columns[0, -1]) + 1, :].unbind()
        else:
            self._read = read.unbind()
        if columns.shape[1] == 1:
            self._taken: tuple[slice | int | Index, ...] = (slice(None), slice(None), 0)
            self._place = rows.index, column_index
        else:
            at, token = written.nonzero()
            self._taken = rows.indices.add(at), slice(None), rows.indices.add(token)
            self._place = rows.indices.add(rows.numbers[at]), rows.indices.add(columns[written])

    def record(self, layers: range) -> None:
        """Note that all of some layers (1-based) are about to write and read. Raises CacheHoleError for a hole."""
        self._cache.ledger.write(layers, self._rows.numbers, self._starts, self._ends, then_read=True)
        self._recorded = layers

    @torch.compiler.disable  # the graph of a compiled layer ends here: which columns are written differs by call
    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [rows, kv_heads, T, head_dim]; return all that the rows may attend to.

        ``layer_index`` counts from 0, as in the stock models. Raises CacheHoleError if any of it is missing.
        """
        if layer_index + 1 not in self._recorded:
            self.record(range(layer_index + 1, layer_index + 2))
        new = torch.cat([keys, values], dim=1)
        if self._own:
            self._own[layer_index].copy_(new)
        else:
            row_index, column_index = self._place
            taken = tuple(part.tensor if isinstance(part, Index) else part for part in self._taken)
            self._cache.layers[layer_index][row_index.tensor, :, column_index.tensor] = new[taken]
        if self._rows.together:
            return self._halves[0][layer_index], self._halves[1][layer_index]
        read_keys, read_values = self._rows.of(self._read[layer_index]).chunk(2, dim=1)
        return read_keys, read_values


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
    """A cache with room for some rows. A column is a position: every row begins in column 0, and has its own length."""

    def __init__(self, model: MultiExitDecoder, rows: int, columns: int, *, more_layers: int = 0) -> None:
        """Make room for ``rows`` rows of at most ``columns`` tokens; see :class:`KeyValueCache`."""
        self.stepper = model.stepper
        self.device = model.device
        self.dtype: torch.dtype = model.backbone.dtype
        self.indices = Indices(model.device)
        self.cache = KeyValueCache(model, rows, columns, self.indices, more_layers=more_layers)
        self._pad_id = model.pad_id
        self._causal_by_itself = model.backbone.config._attn_implementation == "sdpa"
        self._columns = torch.arange(columns, device=self.device)
        self._like = torch.empty(0, dtype=self.dtype, device=self.device)
        self._rows: dict[bytes, Rows] = {}
        self._contexts: dict[tuple[Rows, int], DecoderContext] = {}

    def __len__(self) -> int:
        return len(self.cache.ledger.lengths)

    def rows(self, numbers: RowNumbers | None = None) -> Rows:
        """Return rows by their numbers, in increasing order; by default all.

        They are the same objects until a row begins a column: their numbers are copied to the device once.
        """
        numbers = np.arange(len(self)) if numbers is None else numbers
        key = numbers.tobytes()
        if key not in self._rows:
            self._rows[key] = Rows(numbers, self.indices)
        return self._rows[key]

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
            padded = [[*prompts[place], *[self._pad_id] * int(longest - lengths[place])] for place in places.tolist()]
            numbers = np.ravel(padded), places, np.arange(len(places)), lengths[places] - 1
            tokens, into, row_index, column_index = map(self.indices.add, numbers)
            columns = np.tile(np.arange(longest), (len(places), 1))
            context = self.context(some, columns, np.zeros_like(places))
            hidden = self.stepper.embed(tokens.tensor.view(columns.shape), context.positions)
            hidden = self.run(range(1, self.stepper.num_layers + 1), hidden, context)
            last[into.tensor] = hidden[row_index.tensor, column_index.tensor]
        return last

    def read_again(self, prompts: Sequence[Sequence[int]], known: Tensor) -> None:
        """Read prompts in all rows, as :meth:`read`, whose keys and values another batch has made."""
        rows = self.rows()
        lengths = self._begin_prompts(rows, prompts)
        self.cache.clear(rows, int(lengths.max()))
        self.cache.ledger.write(range(1, len(known) + 1), rows.numbers, 0, lengths, then_read=True)
        self.cache.stored[..., : int(lengths.max()), :] = known

    def _begin_prompts(self, rows: Rows, prompts: Sequence[Sequence[int]]) -> RowNumbers:
        lengths = np.array([len(prompt) for prompt in prompts])
        self.begin(rows, lengths)
        return lengths

    def begin(self, rows: Rows, columns: int | RowNumbers = 1) -> None:
        """Begin columns of some rows, so many of each: new tokens are about to be read."""
        self.cache.ledger.lengths[rows.numbers] += columns
        self._rows, self._contexts = {rows.numbers.tobytes(): rows}, {}

    def free(self, numbers: RowNumbers) -> None:
        self.cache.ledger.lengths[numbers] = 0
        self.cache.ledger.stored[:, numbers] = 0

    def keep(self, rows: Rows) -> None:
        self.cache.keep(rows)
        self._rows, self._contexts = {}, {}

    def newest(self, rows: Rows) -> RowNumbers:
        """Return the column of the newest token of some rows: int64 [rows]."""
        return self.cache.ledger.lengths[rows.numbers] - 1

    def newest_columns(self, rows: Rows, tokens: int) -> RowNumbers:
        """Return the columns of the newest tokens of some rows: int64 [rows, tokens]."""
        return self.newest(rows)[:, None] + np.arange(1 - tokens, 1)

    def newest_context(self, rows: Rows, tokens: int = 1) -> DecoderContext:
        """Return the context of the newest tokens of some rows; it is made once, until a row begins a column."""
        if (rows, tokens) not in self._contexts:
            self._contexts[rows, tokens] = self.context(rows, self.newest_columns(rows, tokens))
        return self._contexts[rows, tokens]

    def context(self, rows: Rows, columns: RowNumbers, starts: RowNumbers | None = None) -> DecoderContext:
        """Return the context in which layers pass columns [rows, T] of some rows.

        Keys and values are written from columns ``starts`` [rows] on, by default from the first. A row with fewer to
        write than others passes columns that it has; the caller drops their states.
        """
        starts = columns[:, 0] if starts is None else starts
        column_index = self.indices.add(columns.clip(min=0).ravel())
        window = CacheWindow(self.cache, rows, columns, starts, column_index)
        positions = column_index.tensor.view(columns.shape)
        begins_all = columns.shape[1] > 1 and not columns[:, 0].any()
        mask = None
        if not (begins_all and self._causal_by_itself) and (columns != columns[0, -1]).any():
            longest = int(columns[:, -1].max()) + 1
            hidden = self._columns[:longest] > positions.unsqueeze(-1)
            # An additive mask is what all attention functions of transformers but flash attention take; a boolean one
            # would be turned into it again in every layer.
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(hidden, torch.finfo(self.dtype).min).unsqueeze(1)
        return DecoderContext(positions, self.rotation(positions), mask, window)

    def rotation(self, positions: Tensor) -> object:
        """Return the rotary embeddings of positions [rows, T], where the family has them."""
        return self.stepper.rotation(self._like, positions)

    def run(self, layers: range, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run some layers (1-based): [rows, T, width] -> [rows, T, width]; ``context`` is of :meth:`context`."""
        assert isinstance(context.cache, CacheWindow)
        context.cache.record(layers)
        for layer in layers:
            hidden = self.stepper.step(layer, hidden, context)
        return hidden


_Key = tuple[DecoderStepper, tuple[tuple[int, ...], ...]]


@checked
class ReadPrompts:
    """Keys, values and last states of prompts, which depend on no rule and no knob.

    For callers that decode the same batches of prompts many times, as a sweep over knobs does; weights must not change
    meanwhile. A batch for which ``max_bytes`` on the model's device leave no room is read each time.
    """

    def __init__(self, max_bytes: NotNegative = 2 * 2**30) -> None:
        self._room = max_bytes
        self._read: dict[_Key, tuple[Tensor, Tensor]] = {}

    def states(self, batch: TokenBatch, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts in all rows of a batch as :meth:`TokenBatch.read`, unless they have been read before."""
        key = batch.stepper, tuple(map(tuple, prompts))
        if key in self._read:
            states, known = self._read[key]
            batch.read_again(prompts, known)
            return states
        states = batch.read(batch.rows(), prompts)
        known = batch.cache.stored[..., : max(map(len, prompts)), :]
        if states.nbytes + known.nbytes <= self._room:
            self._room -= states.nbytes + known.nbytes
            self._read[key] = states, known.clone()
        return states
