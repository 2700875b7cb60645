"""Regrouping: rows that leave early go on with their next token at once, and every layer runs on a full batch.

Dynamic rebatching (Liu et al., DREX, 2025, arXiv 2512.15705), where no row is ever kept in against its rule. A row
runs one stage after the other: the layers up to each exit, and, wherever it leaves, what comes behind all exits: the
closing layers, if there are any, and the LM head. Between two stages it waits for company.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from consistentee.engine.cache import RowNumbers, Rows
from consistentee.engine.owed_tokens import POLICIES
from consistentee.engine.sampling import choose_tokens
from consistentee.engine.token_batch import TokenBatch
from consistentee.engine.token_decoder import (
    Writing,
    answers_at_once,
    late_layers,
    logits_behind_exits,
    planned_exits,
    rows_leaving,
    state_behind_exit,
)
from consistentee.engine.transcript import Transcript, clock
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import Steps
from consistentee.rules.exit_rule import State, start_rule
from consistentee.traces.token_view import TokenView

_FREE = -1


class Texts:
    """The texts under way, one a slot.

    Attributes:
        newest: the newest token of each slot, int64 [slots], on the device.
        left: the layer that it was read off, int64 [slots].
    """

    def __init__(self, model: MultiExitDecoder, texts: Sequence[Transcript], slots: int, writing: Writing) -> None:
        """``texts``: all of them, under way or not."""
        self.newest = torch.zeros(slots, dtype=torch.long, device=model.device)
        self.left = np.zeros(slots, dtype=np.int64)
        self._texts = texts
        self._sampling = writing.sampling
        self._row = np.full(slots, _FREE)
        self._max_new_tokens = writing.max_new_tokens
        self._steps = Steps("decoding", len(texts) * writing.max_new_tokens)

    @property
    def free(self) -> RowNumbers:
        return np.flatnonzero(self._row == _FREE)

    def begin(self, slots: RowNumbers, rows: Sequence[int], layer: int) -> list[Sequence[int]]:
        """Begin rows ``rows`` of all texts, whose first token is read off layer ``layer``; return their prompts."""
        self._row[slots] = rows
        self.left[slots] = layer
        return [self._texts[row].prompt for row in rows]

    def of(self, slots: RowNumbers) -> list[Transcript]:
        """Return the texts in some slots."""
        return [self._texts[row] for row in self._row[slots].tolist()]

    def add_tokens(self, rows: Rows, logits: Tensor) -> RowNumbers:
        """Take the next token of some slots from logits [slots, vocabulary]; return the slots whose text has ended."""
        slots, transcripts = rows.numbers, self.of(rows.numbers)
        tokens = choose_tokens(self._sampling, logits, transcripts)
        rows.put(self.newest, tokens)
        chosen = tokens.tolist()
        for transcript, token, layer in zip(transcripts, chosen, self.left[slots].tolist(), strict=True):
            transcript.add(token, layer)
        self._steps.add(len(chosen), len(chosen))
        ended = slots[[transcript.ended_by is not None for transcript in transcripts]]
        for transcript in self.of(ended):
            self._steps.leave_out(self._max_new_tokens - len(transcript.tokens))
        return ended

    def end(self, slots: RowNumbers) -> None:
        self._row[slots] = _FREE


PATIENCE = 100
"""Turns that a row is passed over at most before its stage runs, full or not; as many as DREX has."""


class Waiting:
    """Slots before their next stage: number 0 begins a token. A stage runs once a batch of them is there.

    Where no batch is full, the fullest runs: what a batch costs hardly depends on its rows, so that rows that wait for
    company cost less than rows that run without. Where several are full, the one with the row that is furthest behind
    runs; and of a stage those rows run first. So rows keep pace with each other, however deep their tokens go, and none
    is left to write the rest of its text alone. Rows that came later count as level with the slowest.
    """

    def __init__(self, slots: int, batch_sizes: Sequence[int]) -> None:
        """``batch_sizes``: rows that a full batch of each stage has."""
        self._batch_sizes = np.array(batch_sizes)
        self._stage = np.full(slots, -1)
        self._tokens = np.zeros(slots, dtype=np.int64)  # written so far, as if all had begun together
        self._since = np.zeros(slots, dtype=np.int64)  # the turn after which a slot came
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting())

    def _waiting(self) -> RowNumbers:
        return np.flatnonzero(self._stage >= 0)

    def enter(self, slots: RowNumbers) -> None:
        """Begin rows in some slots; their first token makes them level with the slowest."""
        self._tokens[slots] = self._tokens[self._waiting()].min(initial=self._tokens.max() + 1) - 1

    def put(self, slots: RowNumbers, stage: int) -> None:
        """Let some slots wait before a stage; before stage 0, they have written a token more."""
        self._stage[slots] = stage
        self._since[slots] = self._turn
        if stage == 0:
            self._tokens[slots] += 1

    def take(self) -> tuple[int, RowNumbers]:
        """Return the stage to run, and the slots that run it, in increasing order; at least one must wait."""
        self._turn += 1
        waiting = self._waiting()
        longest = waiting[self._since[waiting].argmin()]
        overdue = self._turn - self._since[longest] > PATIENCE
        stage = int(self._stage[longest]) if overdue else self._fullest(waiting)
        slots = np.flatnonzero(self._stage == stage)
        first_by = self._since if overdue else self._tokens
        first = np.lexsort((self._since[slots], first_by[slots]))[: self._batch_sizes[stage]]
        slots = np.sort(slots[first])
        self._stage[slots] = -1
        return stage, slots

    def _fullest(self, waiting: RowNumbers) -> int:
        rows = np.bincount(self._stage[waiting], minlength=len(self._batch_sizes))
        filled = (rows / self._batch_sizes).clip(max=1.0)
        fullest = waiting[filled[self._stage[waiting]] == filled.max()]
        return int(self._stage[fullest[self._tokens[fullest].argmin()]])


class InFlight:
    """Prompts that are continued, some of them at a time.

    Attributes:
        slots: the keys and values of those under way.
        texts: what is written in each slot.
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        texts: Sequence[Transcript],
        writing: Writing,
        in_flight: int,
    ) -> None:
        """Make room for ``in_flight`` rows, or for all if they are fewer. Raises UserError where it cannot be had."""
        slots, new_columns = min(in_flight, len(texts)), writing.max_new_tokens - 1
        self.slots = TokenBatch(model, slots, max(len(text.prompt) for text in texts) + new_columns)
        self.texts = Texts(model, texts, slots, writing)
        self._model = model
        self._unread = iter(range(len(texts)))
        self._rule = writing.rule
        self._batch_size = writing.batch_size
        self._stretches = model.stretches
        self._head = len(self._stretches)
        # The LM head costs hardly more for two batches than for one, and as much as many layers of a small model.
        batch = writing.batch_size
        behind_exits = batch if model.closing else max(batch, min(2 * batch, slots // 2))
        self._waiting = Waiting(slots, [batch] * self._head + [behind_exits])
        self._owed = POLICIES[writing.kv](self.slots)
        self._planned = np.zeros(slots, dtype=np.int64)
        # What rows wait with: the state that enters their next stage, the rule's state, the states at earlier exits.
        self._hidden = torch.zeros(slots, model.width, dtype=self.slots.dtype, device=model.device)
        self._states: list[State] = [{} for _ in self._stretches]
        self._past = self._hidden.new_zeros(slots, self._head, model.width) if self._rule.reads_history else None

    def run(self) -> float:
        """Write all texts; return the seconds spent on prompts, the first new tokens included."""
        prefill_seconds = 0.0
        while True:
            free = self.texts.free[: self._batch_size]
            if len(free) and (rows := list(islice(self._unread, len(free)))):
                start = clock(self._model.device)
                self._read(free[: len(rows)], rows)
                prefill_seconds += clock(self._model.device) - start
            elif len(self._waiting):
                self._run_stage(*self._waiting.take())
            else:
                return prefill_seconds

    @torch.inference_mode()
    def _read(self, slots: RowNumbers, rows: list[int]) -> None:
        prompts = self.texts.begin(slots, rows, self._model.num_layers)
        self._waiting.enter(slots)
        filled = self.slots.rows(slots)
        hidden = self.slots.read(filled, prompts)
        self._add_tokens(filled, self._model.logits(self._model.num_layers, hidden))

    @torch.inference_mode()
    def _run_stage(self, stage: int, slots: RowNumbers) -> None:
        rows = self.slots.rows(slots)
        if stage == self._head:
            context = self.slots.context(rows)
            self._add_tokens(rows, logits_behind_exits(self._model, self.slots, rows.of(self._hidden), context))
            return
        if stage == 0:
            self.slots.begin(rows)
        texts = self.texts.of(slots)
        places, keys = [len(text.tokens) for text in texts], [text.key for text in texts]
        leg = self._owed.enter(self._stretches[stage], rows)
        if stage == 0:
            hidden = self._model.stepper.embed(rows.of(self.texts.newest).unsqueeze(1), leg.context.positions)
            self._planned[slots] = planned_exits(self._rule, self._model, places, keys)
            state = start_rule(self._rule, len(rows), self._model.num_layers, self._model.device)
        else:
            hidden = rows.of(self._hidden).unsqueeze(1)
            state = {name: rows.of(tensor) for name, tensor in self._states[stage].items()}
        entered, hidden = self._owed.run(leg, hidden)
        past = None if self._past is None else rows.of(self._past)[:, :stage]
        exit_layer = self._model.exit_layers[stage]
        view = TokenView(self._model, exit_layer, hidden, places, keys, entered=entered, past=past)
        leaves = rows_leaving(self._rule, view, state, self._planned[slots])
        leaving, staying = self.slots.rows(np.flatnonzero(leaves)), self.slots.rows(np.flatnonzero(~leaves))
        left, stayed = rows.take(leaving.numbers), rows.take(staying.numbers)
        if len(stayed):
            self._stay(stayed, staying, view, state, stage)
        if len(left):
            if view.layer < view.num_layers:
                self._owed.leave(leg, hidden)
            self._leave(left, leaving, view)

    def _stay(self, rows: Rows, places: Rows, view: TokenView, state: State, stage: int) -> None:
        rows.put(self._hidden, places.of(view.hidden)[:, 0])
        kept = self._states[stage + 1]
        for name, tensor in state.items():
            if name not in kept:
                kept[name] = tensor.new_zeros(len(self.slots), *tensor.shape[1:])
            rows.put(kept[name], places.of(tensor))
        if self._past is not None:
            rows.put(self._past[:, : stage + 1], places.of(view.history))
        self._waiting.put(rows.numbers, stage + 1)

    def _leave(self, rows: Rows, places: Rows, view: TokenView) -> None:
        """Let the rows at some places of a view leave."""
        self.texts.left[rows.numbers] = view.layer
        if answers_at_once(self._model, view):
            self._add_tokens(rows, view.logits_of(places.of))
        else:
            rows.put(self._hidden, state_behind_exit(self._model, view, places))
            self._waiting.put(rows.numbers, self._head)

    def _add_tokens(self, rows: Rows, logits: Tensor) -> None:
        ended = self.texts.add_tokens(rows, logits)
        self._waiting.put(np.setdiff1d(rows.numbers, ended), 0)
        for slot, transcript in zip(ended.tolist(), self.texts.of(ended), strict=True):
            transcript.late_layers = late_layers(self.slots, slot, transcript.exit_layers)
        self.texts.end(ended)
        self.slots.free(ended)
