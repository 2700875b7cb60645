"""Regrouping: rows that leave early go on with their next token at once, and every layer runs on a full batch.

Dynamic rebatching (Liu et al., DREX, 2025, arXiv 2512.15705), where no row is ever kept in against its rule. A row
runs one stage after the other: the layers up to each exit, and, wherever it leaves, what comes behind all exits: the
closing layers, if there are any, and the LM head. Between two stages it waits for company.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from consistentee.engine.clock import clock
from consistentee.engine.in_flight.slots import Slots
from consistentee.engine.in_flight.texts import Texts
from consistentee.engine.in_flight.waiting import Waiting
from consistentee.engine.step.cache import RowNumbers, Rows
from consistentee.engine.step.owed_tokens import owed_tokens
from consistentee.engine.step.token_decoder import (
    late_layers,
    logits_behind_exits,
    places_leaving,
    says_at_once,
    state_behind_exit,
)
from consistentee.engine.transcript import Transcript
from consistentee.engine.writing import Writing
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import State
from consistentee.traces.token_view import TokenView


class InFlight:
    """Prompts that are continued, some of them at a time.

    Attributes:
        slots: the keys and values of those under way.
        texts: what is written in each slot.
        prefill_seconds: spent on prompts so far, the first new tokens included.
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        prompts: Sequence[Sequence[int]],
        transcripts: Sequence[Transcript],
        writing: Writing,
        in_flight: int,
    ) -> None:
        """Make room for ``in_flight`` rows, or for all if they are fewer; ``transcripts``: one a prompt.

        Raises UserError where the room cannot be had.
        """
        slots, new_columns = min(in_flight, len(prompts)), writing.max_new_tokens - 1
        self.slots = Slots(model, slots, max(map(len, prompts)) + new_columns)
        self.texts = Texts(model, transcripts, slots, writing)
        self.prefill_seconds = 0.0
        self._model = model
        self._prompts = prompts
        self._unread = iter(range(len(prompts)))
        self._rule = writing.rule
        self._batch_size = writing.batch_size
        self._stretches = model.stretches
        self._head = len(self._stretches)
        # The LM head costs hardly more for two batches than for one, and as much as many layers of a small model.
        batch = writing.batch_size
        behind_exits = batch if model.closing else max(batch, min(2 * batch, slots // 2))
        self._waiting = Waiting(slots, [batch] * self._head + [behind_exits])
        self._owed = owed_tokens(writing.kv, self.slots, new_columns)
        # What rows wait with: the state that enters their next stage, the rule's state, the states at earlier exits.
        self._hidden = torch.zeros(slots, model.width, dtype=self.slots.dtype, device=model.device)
        self._states: list[State] = [{} for _ in self._stretches]
        self._past = self._hidden.new_zeros(slots, self._head, model.width) if self._rule.reads_history else None

    def run(self) -> Iterator[Transcript]:
        """Write all texts, and yield each as soon as it has ended. All slots are free behind this, however it ends."""
        try:
            while True:
                if len(self.texts.free) and (rows := list(islice(self._unread, self._room()))):
                    yield from self._read(rows)
                elif len(self._waiting):
                    yield from self._run_stage(*self._waiting.take())
                else:
                    return
        finally:
            self._end(self.texts.taken)

    def _room(self) -> int:
        return min(len(self.texts.free), self._batch_size)

    @torch.inference_mode()
    def _read(self, rows: list[int]) -> list[Transcript]:
        start = clock(self._model.device)
        slots, prompts = self.texts.free[: len(rows)], [self._prompts[row] for row in rows]
        self.texts.begin(slots, rows, prompts, self._model.num_layers)
        self._waiting.enter(slots)
        hidden = self.slots.read(self.slots.rows(slots), prompts)
        ended = self._say(slots, self._model.logits(self._model.num_layers, hidden))
        self.prefill_seconds += clock(self._model.device) - start
        return ended

    @torch.inference_mode()
    def _run_stage(self, stage: int, slots: RowNumbers) -> list[Transcript]:
        rows = self.slots.rows(slots)
        if stage == self._head:
            context = self.slots.context(rows)
            return self._say(slots, logits_behind_exits(self._model, self.slots, rows.of(self._hidden), context))
        if stage == 0:
            self.slots.begin(rows)
        context, layers = self.slots.context(rows), self._stretches[stage]
        if stage == 0:
            hidden = self._model.stepper.embed(rows.of(self.texts.newest).unsqueeze(1), context.positions)
        else:
            hidden = rows.of(self._hidden).unsqueeze(1)
        hidden = self._owed.run(layers, hidden, rows, context)
        past = None if self._past is None else rows.of(self._past)[:, :stage]
        exit_layer, places = self._model.exit_layers[stage], self.texts.places(slots)
        view = TokenView(self._model, exit_layer, hidden, places, self.texts.keys(slots), past=past)
        state = self._state_of(rows, stage)
        leaving = places_leaving(self._rule, view, state)
        staying = np.delete(np.arange(len(slots)), leaving)
        if len(staying):
            self._stay(rows.take(staying), torch.from_numpy(staying).to(hidden.device), view, state, stage)
        return self._leave(rows.take(leaving), leaving, view) if leaving else []

    def _state_of(self, rows: Rows, stage: int) -> State:
        """Return the rule's state of some rows, which starts anew with every token."""
        if stage:
            return {name: rows.of(tensor) for name, tensor in self._states[stage].items()}
        state = self._rule.start(len(rows), self._model.num_layers)
        return {name: tensor.to(self._model.device) for name, tensor in state.items()}

    def _stay(self, rows: Rows, places: Tensor, view: TokenView, state: State, stage: int) -> None:
        rows.put(self._hidden, view.hidden[places, 0])
        kept = self._states[stage + 1]
        for name, tensor in state.items():
            if name not in kept:
                kept[name] = tensor.new_zeros(len(self.slots), *tensor.shape[1:])
            rows.put(kept[name], tensor[places])
        if self._past is not None:
            rows.put(self._past[:, : stage + 1], view.history[places])
        self._waiting.put(rows.numbers, stage + 1)

    def _leave(self, rows: Rows, places: list[int], view: TokenView) -> list[Transcript]:
        """Let the rows at some places of a view leave; return the texts that have ended, if their tokens are known."""
        self.texts.left[rows.numbers] = view.layer
        if view.layer < view.num_layers:
            self._owed.leave(rows, view.hidden[places])
        if says_at_once(self._model, view):
            return self._say(rows.numbers, view.logits_of(places))
        rows.put(self._hidden, state_behind_exit(self._model, view, places))
        self._waiting.put(rows.numbers, self._head)
        return []

    def _say(self, slots: RowNumbers, logits: Tensor) -> list[Transcript]:
        ended = self.texts.say(slots, logits)
        self._waiting.put(np.setdiff1d(slots, ended), 0)
        transcripts = [self.texts.of(slot) for slot in ended.tolist()]
        for slot, transcript in zip(ended.tolist(), transcripts, strict=True):
            prompt_columns = int(self.slots.prompt_columns[slot])
            ledger, layers = self.slots.cache.ledger, transcript.exit_layers
            transcript.late_layers = late_layers(ledger, slot, prompt_columns, layers)
        self._end(ended)
        return transcripts

    def _end(self, slots: RowNumbers) -> None:
        self.texts.end(slots)
        self.slots.free(slots)
