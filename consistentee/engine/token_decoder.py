"""TokenDecoder: decodes a batch token by token; a rule decides at which layer each of them leaves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import RowNumbers, Rows
from consistentee.engine.owed_tokens import POLICIES, KVPolicy
from consistentee.engine.sampling import Sampling, choose_tokens
from consistentee.engine.token_batch import ReadPrompts, TokenBatch
from consistentee.engine.transcript import Transcript
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, State, ask, start_rule
from consistentee.traces.token_view import TokenView


class Writing(NamedTuple):
    """The settings of generation that both engines share; see :func:`consistentee.generate`."""

    rule: ExitRule
    max_new_tokens: int
    batch_size: int
    kv: KVPolicy = "propagate"
    sampling: Sampling | None = None
    read: ReadPrompts | None = None


class TokenDecoder:
    """One batch of prompts. :meth:`prefill` gives the first new token, every :meth:`step` one more for every row.

    Attributes:
        batch: the prompts that are still written on, and their keys and values.
    """

    def __init__(self, model: MultiExitDecoder, texts: Sequence[Transcript], writing: Writing) -> None:
        """``texts``: with a prompt each; the caller adds what is returned to them, and drops those that end."""
        new_columns = writing.max_new_tokens - 1  # the last new token is not read
        self._model = model
        self._texts = texts
        self._writing = writing
        self.batch = TokenBatch(model, len(texts), max(len(text.prompt) for text in texts) + new_columns)
        self._owed = POLICIES[writing.kv](self.batch)
        self._newest = torch.empty(0)
        self._step = 0

    @torch.inference_mode()
    def prefill(self) -> list[int]:
        """Run the prompts at full depth, and return the first new token of each row."""
        read = self._writing.read
        batch, prompts = self.batch, [text.prompt for text in self._texts]
        hidden = batch.read(batch.rows(), prompts) if read is None else read.states(batch, prompts)
        logits = self._model.logits(self._model.num_layers, hidden)
        self._newest = choose_tokens(self._writing.sampling, logits, self._texts)
        return self._newest.tolist()

    @torch.inference_mode()
    def step(self) -> tuple[list[int], list[int]]:
        """Read the newest token of each row, and return the next ones and the layers that they were read off."""
        model, batch, rule = self._model, self.batch, self._writing.rule
        self._step += 1
        rows, keys = batch.rows(), [text.key for text in self._texts]
        batch.begin(rows)
        planned = planned_exits(rule, model, [self._step] * len(rows), keys)
        state = start_rule(rule, len(rows), model.num_layers, model.device)
        leg = self._owed.enter(model.stretches[0], rows)
        context_of_all = leg.context
        hidden = batch.stepper.embed(self._newest.unsqueeze(1), context_of_all.positions)
        past = hidden.new_empty(len(rows), 0, model.width) if rule.reads_history else None
        exit_layers = np.full(len(rows), model.num_layers)
        left_with = hidden.new_empty(len(rows), model.width)  # of rows whose logits are computed together at the end
        waiting = np.zeros(len(rows), dtype=bool)
        for exit_layer, following in zip(model.exit_layers, [*model.stretches[1:], range(0)], strict=True):
            entered, hidden = self._owed.run(leg, hidden)
            view = TokenView(model, exit_layer, hidden, self._step, keys, entered=entered, past=past)
            leaves = rows_leaving(rule, view, state, planned[rows.numbers])
            past = past if past is None or leaves.all() else view.history
            if not leaves.any():
                leg = self._owed.enter(following, rows, leg.context)
                continue
            leaving, staying = batch.rows(np.flatnonzero(leaves)), batch.rows(np.flatnonzero(~leaves))  # places
            before, left, rows = leg, rows.take(leaving.numbers), rows.take(staying.numbers)
            exit_layers[left.numbers] = exit_layer
            if len(rows):
                leg = self._owed.enter(following, rows)  # before anything is taken: all indices are copied at once
            if exit_layer < model.num_layers:
                self._owed.leave(before, hidden)
            if answers_at_once(model, view):
                self._choose(left, view.logits_of(leaving.of))
            else:
                left.put(left_with, state_behind_exit(model, view, leaving))
                waiting[left.numbers] = True
            if not len(rows):
                break
            hidden, keys = staying.of(hidden), [keys[place] for place in staying.numbers]
            state = {name: staying.of(tensor) for name, tensor in state.items()}
            past = past if past is None else staying.of(past)
        if waiting.any():
            rows = batch.rows(np.flatnonzero(waiting))
            self._choose(rows, logits_behind_exits(model, batch, rows.of(left_with), context_of_all))
        return self._newest.tolist(), exit_layers.tolist()

    def _choose(self, rows: Rows, logits: Tensor) -> None:
        chosen = choose_tokens(self._writing.sampling, logits, [self._texts[row] for row in rows.numbers])
        rows.put(self._newest, chosen)

    def keep(self, places: list[int]) -> None:
        """Drop all rows but these."""
        rows = self.batch.rows(np.array(places))
        self.batch.keep(rows)
        self._owed.keep(rows)
        self._newest = rows.of(self._newest).clone()
        self._texts = [self._texts[place] for place in places]


def planned_exits(rule: ExitRule, model: MultiExitDecoder, steps: Sequence[int], keys: Sequence[int]) -> RowNumbers:
    """Return the exit layers that a rule knows in advance: int64 [rows]; 0 where it must be asked."""
    rows = zip(steps, keys, strict=True)
    return np.array([rule.exit_in_advance(model.exit_layers, step, key) or 0 for step, key in rows], dtype=np.int64)


def rows_leaving(rule: ExitRule, view: TokenView, state: State, planned: RowNumbers) -> NDArray[np.bool_]:
    """Return which rows leave at this layer: bool [rows]; at the last one, all of them.

    A rule that has planned nothing (see :func:`planned_exits`) is asked, and its answer read from the device.
    """
    if view.layer == view.num_layers:
        return np.ones(view.rows, dtype=bool)
    if planned.all():
        return planned == view.layer
    if not rule.asked_at(view.layer):
        return np.zeros(view.rows, dtype=bool)
    return np.array(ask(rule, view, state).tolist())


def answers_at_once(model: MultiExitDecoder, view: TokenView) -> bool:
    """Return whether rows that leave get their logits now: the rule has read them, or each exit has a head of its own.

    A shared LM head, the largest matrix of a small model, is read once for all rows that wait for it, and so are
    closing layers.
    """
    return not model.closing and (view.has_logits or not model.shares_head)


def state_behind_exit(model: MultiExitDecoder, view: TokenView, places: Rows) -> Tensor:
    """Return what rows that leave wait with for :func:`logits_behind_exits`: [places, width]."""
    return places.of(view.hidden[:, 0]) if model.closing else view.head_states_of(places.of)


def logits_behind_exits(model: MultiExitDecoder, batch: TokenBatch, left: Tensor, context: DecoderContext) -> Tensor:
    """Run what lies behind all exits, closing layers and LM head: [rows, width] -> [rows, vocabulary]."""
    if not model.closing:
        return model.stepper.unembed(left)
    return model.logits(model.num_layers, batch.run(model.closing, left.unsqueeze(1), context)[:, 0])


def late_layers(batch: TokenBatch, row: int, exit_layers: Sequence[int]) -> list[int]:
    """Return, for each new token of a row, how many layers the token read for it was given after it left.

    The first is read off the prompt, which leaves nothing for later. ``exit_layers``: of all new tokens.
    """
    read = batch.prompt_columns[row] + np.arange(len(exit_layers) - 1)
    cached = (batch.cache.ledger.stored[:, row] > read[:, None]).sum(axis=1)
    return [0, *(cached - np.array(exit_layers[1:], dtype=np.int64)).tolist()]
