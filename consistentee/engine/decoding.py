"""The loop that decodes: rows go on token by token, a rule decides at which layer each token exits.

The stages of a token are the segments, each of which ends at an exit; then what lies behind all exits: last layers, if
every token runs them, and the LM head; at last the new token is read from the device. A schedule chooses the next stage
and its rows: all rows of a batch advance in step, or rows in flight go on at once and every stage runs full batches.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.engine.cache import RowNumbers, Rows, RowTensors
from consistentee.engine.missing_keys import POLICIES, KVPolicy
from consistentee.engine.sampling import Sampling, choose_tokens
from consistentee.engine.token_batch import ReadPrompts, TokenBatch
from consistentee.engine.transcript import Transcript, clock
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import Steps
from consistentee.rules.exit_rule import ExitRule, State, ask, start_rule
from consistentee.traces.token_view import TokenView

FREE = -1


class RowStates:
    """State of the rows under way, each in a slot. Arrays are indexed by slot.

    Attributes:
        newest: the newest token, int64, on the device.
        stages: the stage that a row waits for, or runs; ``FREE`` where a slot has no row.
        planned_exits, exit_layers: the exit of the newest token, if the rule knows it in advance, and once it is known.
        tokens: how many a row has, as if all rows had begun together.
        since: the turn after which a row came to its stage.
        kept: tensors that rows wait with.
        turn: how often a schedule has chosen rows to run.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.newest = torch.zeros(slots, dtype=torch.long, device=device)
        self.texts: NDArray[np.object_] = np.full(slots, None)  # transcripts
        self.stages = np.full(slots, FREE)
        self.planned_exits, self.exit_layers, self.tokens, self.since = np.zeros((4, slots), dtype=np.int64)
        self.kept = RowTensors(slots)
        self.turn = 0

    @property
    def taken(self) -> RowNumbers:
        return np.flatnonzero(self.stages != FREE)

    def enter(self, slots: RowNumbers, texts: Sequence[Transcript], layer: int) -> None:
        """Begin texts, whose first token is read off layer ``layer``; they count as level with the slowest."""
        self.texts[slots] = texts
        self.exit_layers[slots] = layer
        self.tokens[slots] = self.tokens[self.taken].min(initial=self.tokens.max() + 1) - 1

    def wait(self, slots: RowNumbers, stage: int) -> None:
        """Let rows wait for a stage; before stage 0, they have a token more."""
        self.stages[slots] = stage
        self.since[slots] = self.turn
        if stage == 0:
            self.tokens[slots] += 1

    def keep(self, rows: Rows) -> None:
        for name in ("texts", "stages", "planned_exits", "exit_layers", "tokens", "since"):
            setattr(self, name, getattr(self, name)[rows.numbers])
        self.newest = rows.of(self.newest).clone()
        self.kept.keep(rows)


Schedule = Callable[[RowStates], tuple[int, RowNumbers]]
"""Choose the next stage, and the slots whose rows run it, in increasing order; at least one row waits."""

PATIENCE = 100
"""Turns that a row is passed over at most before its stage runs, full or not; as many as DREX has."""


def in_step(rows: RowStates) -> tuple[int, RowNumbers]:
    """Let all rows advance together: none begins a token before all others have theirs."""
    stages = rows.stages[rows.stages > 0]
    stage = int(stages.min()) if len(stages) else 0
    return stage, np.flatnonzero(rows.stages == stage)


@dataclass(frozen=True)
class Regrouping:
    """Let a stage run once a batch of rows waits for it: dynamic rebatching (DREX, Liu et al., 2025, arXiv 2512.15705).

    If no batch is full, the fullest runs. If several are, the one with the row that is furthest behind runs, and such
    rows first, so that none writes the rest of its text alone. ``batch_sizes``: of each stage but the last.
    """

    batch_sizes: tuple[int, ...]

    def __call__(self, rows: RowStates) -> tuple[int, RowNumbers]:
        last = np.flatnonzero(rows.stages == len(self.batch_sizes))
        if len(last):
            return len(self.batch_sizes), last
        rows.turn += 1
        taken = rows.taken
        longest = taken[rows.since[taken].argmin()]
        overdue = rows.turn - rows.since[longest] > PATIENCE
        stage = int(rows.stages[longest]) if overdue else self._fullest(rows, taken)
        slots = np.flatnonzero(rows.stages == stage)
        first_by = rows.since if overdue else rows.tokens
        first = np.lexsort((rows.since[slots], first_by[slots]))[: self.batch_sizes[stage]]
        return stage, np.sort(slots[first])

    def _fullest(self, rows: RowStates, taken: RowNumbers) -> int:
        counts = np.bincount(rows.stages[taken], minlength=len(self.batch_sizes))
        filled = (counts / self.batch_sizes).clip(max=1.0)
        fullest = taken[filled[rows.stages[taken]] == filled.max()]
        return int(rows.stages[fullest[rows.tokens[fullest].argmin()]])


_HIDDEN, _PAST = "engine: hidden states", "engine: states at the exits before"


class DecodingOptions(NamedTuple):
    """The options of :func:`consistentee.generate` that the loop needs."""

    rule: ExitRule
    max_new_tokens: int
    batch_size: int
    kv: KVPolicy
    sampling: Sampling | None
    read: ReadPrompts | None


class Decoding:
    """Prompts that are continued, as many at a time as there are slots."""

    def __init__(
        self,
        model: MultiExitDecoder,
        texts: Sequence[Transcript],
        options: DecodingOptions,
        steps: Steps,
        in_flight: int | None = None,
    ) -> None:
        """Make room for ``in_flight`` rows, or for all if they are fewer; None lets all go in step.

        Raises UserError if there is no memory for them.
        """
        slots, columns = min(in_flight or len(texts), len(texts)), max(len(text.prompt) for text in texts)
        self._model = model
        self._options = options
        self._unread = deque(texts)
        self._steps = steps
        self._segments = model.segments
        self._head, self._chosen = len(self._segments), len(self._segments) + 1  # numbers of the last two stages
        self._batch = TokenBatch(model, slots, columns + options.max_new_tokens - 1)  # the last token is not read
        self._missing = POLICIES[options.kv](self._batch)
        self._rows = RowStates(slots, model.device)
        self._schedule: Schedule = in_step
        if in_flight is not None:
            # The LM head costs hardly more for two batches than for one, and as much as many layers of a small model.
            size = options.batch_size
            at_head = size if model.last_layers else max(size, min(2 * size, slots // 2))
            self._schedule = Regrouping((*[size] * self._head, at_head))

    @torch.inference_mode()
    def run(self) -> float:
        """Write all texts; return the seconds spent on prompts, the first new tokens included."""
        prefill_seconds = 0.0
        while True:
            free = np.flatnonzero(self._rows.stages == FREE)[: self._options.batch_size]
            if texts := [self._unread.popleft() for _ in range(min(len(free), len(self._unread)))]:
                start = clock(self._model.device)
                self._read(free[: len(texts)], texts)
                prefill_seconds += clock(self._model.device) - start
            elif len(self._rows.taken):
                stage, slots = self._schedule(self._rows)
                if stage == self._chosen:
                    self._add_tokens(slots)
                elif stage == self._head:
                    self._run_head(slots)
                else:
                    self._run_segment(stage, slots)
            else:
                return prefill_seconds

    def _read(self, slots: RowNumbers, texts: Sequence[Transcript]) -> None:
        batch, last, read = self._batch, self._model.num_layers, self._options.read
        self._rows.enter(slots, texts, last)
        rows, prompts = batch.rows(slots), [text.prompt for text in texts]
        hidden = batch.read(rows, prompts) if read is None else read.states(batch, prompts)
        self._choose(slots, rows.in_torch, self._model.logits(last, hidden))
        self._add_tokens(slots)

    def _run_segment(self, stage: int, slots: RowNumbers) -> None:
        """Run the layers up to an exit; rows that exit wait for their token, the others for the next segment.

        Where the exits of all rows are planned, those before the first are passed by, unless rules read their states.
        """
        model, rule = self._model, self._options.rule
        texts = self._rows.texts[slots].tolist()
        steps, keys = [len(text.tokens) for text in texts], [text.key for text in texts]
        if stage == 0:
            self._batch.begin(self._batch.rows(slots))
            tokens_in_texts = zip(steps, keys, strict=True)
            planned = [rule.exit_in_advance(model.exit_layers, step, key) for step, key in tokens_in_texts]
            self._rows.planned_exits[slots] = [layer or 0 for layer in planned]  # 0 where the rule must be asked
        planned_exits = self._rows.planned_exits[slots]
        segment = self._missing.prepare(self._segments[stage], slots)  # before tensors are taken: one copy of indices
        rows = segment.rows
        if stage == 0:
            tokens = rows.of(self._rows.newest).unsqueeze(1)
            hidden = model.stepper.embed(tokens, segment.context.positions)
            state = start_rule(rule, len(rows), model.num_layers, model.device)
            past = hidden.new_empty(len(rows), 0, model.width) if rule.reads_history else None
        else:
            state = self._rows.kept.get(stage, rows)
            hidden, past = state.pop(_HIDDEN), state.pop(_PAST, None)
        hidden = self._missing.run(segment, hidden)
        while past is None and planned_exits.min() > model.exit_layers[stage]:
            stage += 1
            segment = self._missing.prepare(self._segments[stage], slots)
            hidden = self._missing.run(segment, hidden)
        view = TokenView(model, model.exit_layers[stage], hidden, steps, keys, past=past)
        exits = self._exits(view, state, planned_exits)
        if len(exits) < len(rows):
            kept = {_HIDDEN: hidden} if past is None else {_HIDDEN: hidden, _PAST: view.history}
            self._rows.kept.put(stage + 1, rows, state | kept)
            self._rows.wait(np.delete(slots, exits.numbers), stage + 1)
        if len(exits):
            if view.layer < model.num_layers:
                self._missing.note(segment, hidden)
            self._exit(rows, exits, view)

    def _exits(self, view: TokenView, state: State, planned: RowNumbers) -> Rows:
        """Return the places of the rows that exit at this layer; a rule without planned exits is asked."""
        indices, rule = self._batch.indices, self._options.rule
        if view.layer == view.num_layers:
            return Rows(np.arange(view.rows), indices)
        if planned.all():
            return Rows(np.flatnonzero(planned == view.layer), indices)
        if not rule.asked_at(view.layer):
            return Rows(np.arange(0), indices)
        exits = ask(rule, view, state)
        places = np.flatnonzero(exits.tolist())
        return Rows(places, indices, sent=exits.argsort(descending=True, stable=True)[: len(places)])

    def _exit(self, rows: Rows, places: Rows, view: TokenView) -> None:
        """Let the rows at some places of a view exit.

        A shared LM head, or last layers, run once for all rows that wait for them. Otherwise, and where the rule has
        read the logits, tokens are chosen now.
        """
        model, slots = self._model, rows.numbers[places.numbers]
        self._rows.exit_layers[slots] = view.layer
        if not model.last_layers and (view.has_logits or not model.shares_head):
            self._choose(slots, places.of(rows.index.tensor), view.logits_of(places.of))
        else:
            state = view.hidden if model.last_layers else model.head_state(view.layer, view.hidden)
            self._rows.kept.put(self._head, rows, {_HIDDEN: state})
            self._rows.wait(slots, self._head)

    def _run_head(self, slots: RowNumbers) -> None:
        model, rows = self._model, self._batch.rows(slots)
        context = self._batch.newest_context(rows) if model.last_layers else None
        hidden = self._rows.kept.get(self._head, rows)[_HIDDEN]
        if context is None:
            logits = model.backbone.lm_head(hidden[:, 0])
        else:
            logits = model.logits(model.num_layers, self._batch.run(model.last_layers, hidden, context)[:, 0])
        self._choose(slots, rows.in_torch, logits)

    def _choose(self, slots: RowNumbers, index: slice | Tensor, logits: Tensor) -> None:
        texts = self._rows.texts[slots].tolist()
        self._rows.newest[index] = choose_tokens(self._options.sampling, logits, texts)
        self._rows.wait(slots, self._chosen)

    def _add_tokens(self, slots: RowNumbers) -> None:
        texts, newest = self._rows.texts[slots].tolist(), self._rows.newest.tolist()
        for slot, text in zip(slots.tolist(), texts, strict=True):
            text.add(newest[slot], int(self._rows.exit_layers[slot]))
        self._steps.add(len(texts), len(texts))
        ended = slots[[text.ended_by is not None for text in texts]]
        self._rows.wait(np.setdiff1d(slots, ended), 0)
        if len(ended):
            self._end(ended)

    def _end(self, slots: RowNumbers) -> None:
        for slot, text in zip(slots.tolist(), self._rows.texts[slots], strict=True):
            text.late_layers = _late_layers(self._batch, slot, text)
            self._steps.leave_out(self._options.max_new_tokens - len(text.tokens))
        self._rows.stages[slots] = FREE
        self._batch.free(slots)
        staying = self._rows.taken
        if not self._unread and 0 < len(staying) <= self._options.batch_size:
            rows = self._batch.rows(staying)
            for part in (self._batch, self._missing, self._rows):
                part.keep(rows)


def _late_layers(batch: TokenBatch, row: int, text: Transcript) -> list[int]:
    """Return, for each new token, how many layers the token read for it was given after its exit."""
    read = len(text.prompt) + np.arange(len(text.tokens) - 1)
    cached = (batch.cache.ledger.stored[:, row] > read[:, None]).sum(axis=1)
    return [0, *(cached - np.array(text.exit_layers[1:], dtype=np.int64)).tolist()]
