"""TokenDecoder: decodes a batch token by token; a rule decides at which layer each of them leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import RowNumbers, Rows
from consistentee.engine.owed_tokens import POLICIES, KVPolicy
from consistentee.engine.sampling import Sampling, choose_tokens
from consistentee.engine.token_batch import ReadPrompts, TokenBatch
from consistentee.engine.transcript import Transcript
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, State, ask
from consistentee.traces.token_view import TokenView


@dataclass(frozen=True)
class Writing:
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
        self._owed = POLICIES[writing.kv](self.batch, new_columns)
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
        context = context_of_all = batch.context(rows)
        hidden = batch.stepper.embed(self._newest.unsqueeze(1), context.positions)
        state = start_rule(rule, model, len(rows))
        past = hidden.new_empty(len(rows), 0, model.width) if rule.reads_history else None
        tokens = torch.empty(len(rows), dtype=torch.int64, device=model.device)
        exit_layers = [model.num_layers] * len(rows)
        left_with = hidden[:, 0].clone()  # what rows leave with whose logits are computed together at the end
        waiting: list[int] = []
        for exit_layer, layers in zip(model.exit_layers, model.stretches, strict=True):
            hidden = self._owed.run(layers, hidden, rows, context)
            view = TokenView(model, exit_layer, hidden, self._step, keys, past=past)
            leaving = places_leaving(rule, view, state)
            if leaving:
                left = rows if len(leaving) == view.rows else rows.take(leaving)
                for row in left.numbers:
                    exit_layers[row] = exit_layer
                if exit_layer < model.num_layers:
                    self._owed.leave(left, hidden[leaving])
                if answers_at_once(model, view):
                    self._choose(tokens, left.numbers, view.logits_of(leaving))
                else:
                    left.put(left_with, state_behind_exit(model, view, leaving))
                    waiting += left.numbers.tolist()
            if len(leaving) == view.rows:
                break
            past = past if past is None else view.history
            if leaving:
                staying = np.delete(np.arange(view.rows), leaving)
                kept = torch.from_numpy(staying).to(model.device)
                rows, keys = rows.take(staying), [keys[place] for place in staying]
                hidden, context = hidden.index_select(0, kept), batch.context(rows)
                state = {name: tensor.index_select(0, kept) for name, tensor in state.items()}
                past = past if past is None else past.index_select(0, kept)
        if waiting:
            rows = batch.rows().take(sorted(waiting))
            logits = logits_behind_exits(model, batch, rows.of(left_with), context_of_all)
            self._choose(tokens, rows.numbers, logits)
        self._newest = tokens
        return tokens.tolist(), exit_layers

    def _choose(self, tokens: Tensor, rows: RowNumbers, logits: Tensor) -> None:
        chosen = choose_tokens(self._writing.sampling, logits, [self._texts[row] for row in rows])
        Rows(rows, tokens.device).put(tokens, chosen)

    def keep(self, places: list[int]) -> None:
        rows = self.batch.rows().take(places)
        self.batch.keep(rows)
        self._owed.keep(rows)
        self._newest = rows.of(self._newest)
        self._texts = [self._texts[place] for place in places]


def start_rule(rule: ExitRule, model: MultiExitDecoder, rows: int) -> State:
    """Return a rule's state before the first exit, on the model's device."""
    return {name: tensor.to(model.device) for name, tensor in rule.start(rows, model.num_layers).items()}


def places_leaving(rule: ExitRule, view: TokenView, state: State) -> list[int]:
    """Return the places of the rows that leave at this layer; at the last one, all of them."""
    if view.layer == view.num_layers:
        return list(range(view.rows))
    return [place for place, goes in enumerate(ask(rule, view, state).tolist()) if goes]


def answers_at_once(model: MultiExitDecoder, view: TokenView) -> bool:
    """Return whether rows that leave get their logits now: the rule has read them, or each exit has a head of its own.

    A shared LM head, the largest matrix of a small model, is read once for all rows that wait for it, and so are
    closing layers.
    """
    return not model.closing and (view.has_logits or not model.shares_head)


def state_behind_exit(model: MultiExitDecoder, view: TokenView, places: list[int]) -> Tensor:
    """Return what rows that leave wait with for :func:`logits_behind_exits`: [places, width]."""
    return view.hidden[places, 0] if model.closing else view.head_states_of(places)


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
