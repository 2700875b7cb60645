"""Slots: rows that grow at their own pace over one cache; a row that ends makes room for the next prompt."""

from collections.abc import Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.in_flight.window import PromptWindow, SlotCache, SlotWindow
from consistentee.engine.step.cache import RowNumbers, Rows
from consistentee.engine.step.prompt_batch import passes
from consistentee.engine.step.token_batch import Span, TokenBatch
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


class Slots(TokenBatch):
    """A cache with room for some rows. A column is a position: every row begins in column 0, and has its own length.

    The counterpart of :class:`consistentee.engine.step.prompt_batch.PromptBatch`, whose rows go in step.

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
        self.cache.advance(begun)
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
        self.cache.advance(begun)

    def free(self, numbers: RowNumbers) -> None:
        """Forget the rows in some slots."""
        self.cache.ledger.clear(numbers)
        self.prompt_columns[numbers] = 0

    def context(self, rows: Rows) -> DecoderContext:
        """Return what layers need to pass the newest tokens of some rows."""
        columns = self.newest(rows)[:, None]
        return self._context(rows, columns, np.ones_like(columns, dtype=np.bool_))

    def span(self, rows: Rows, starts: RowNumbers) -> Span:
        """Return the columns from ``starts`` [rows] to the newest ones, for the layers to pass."""
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
        """Return the column of the newest token of some rows: int64 [rows]."""
        return self.cache.ledger.lengths[rows.numbers] - 1

    def places(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the places of tokens among the new ones of their rows."""
        return column_index - self._on_device(self.prompt_columns)[row_index]

    def positions_of(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        """Return the positions of single tokens: their columns."""
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
        return SlotCache(stepper, slots, columns, dtype=dtype, device=model.device)
    except (MemoryError, RuntimeError) as error:
        raise refused from error
