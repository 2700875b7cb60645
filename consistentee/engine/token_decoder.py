"""TokenDecoder: decodes a batch token by token; a rule decides at which layer each of them leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.cache import Ledger, RowNumbers, Rows
from consistentee.engine.owed_tokens import KVPolicy, owed_tokens
from consistentee.engine.prompt_batch import PromptBatch, ReadPrompts, TokenBatch
from consistentee.engine.sampling import Sampling, choose_tokens
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, State, ask
from consistentee.traces.token_view import TokenView, prompt_key


@dataclass(frozen=True)
class Writing:
    """How texts are written; see :func:`consistentee.generate`."""

    rule: ExitRule
    max_new_tokens: int
    batch_size: int
    kv: KVPolicy
    sampling: Sampling | None
    read: ReadPrompts | None = None


class TokenDecoder:
    """One batch of prompts. :meth:`prefill` gives the first new token, every :meth:`step` one more for every row.

    Attributes:
        batch: the prompts that are still written on, and their keys and values.
    """

    def __init__(
        self,
        model: MultiExitDecoder,
        prompts: Sequence[Sequence[int]],
        rule: ExitRule,
        *,
        new_columns: int,
        kv: KVPolicy,
        sampling: Sampling | None,
        read: ReadPrompts | None = None,
    ) -> None:
        """Begin a batch.

        ``new_columns``: number of new tokens that will be read, one less than are written; ``read``: prompts that may
        have been read before.
        """
        self._model = model
        self._prompts = prompts
        self._read = read
        self._rule = rule
        self._sampling = sampling
        self.batch = PromptBatch(model, prompts, new_columns)
        self._owed = owed_tokens(kv, self.batch, new_columns)
        self._keys = [prompt_key(prompt) for prompt in prompts]
        self._stretches = list(zip(model.exit_layers, model.stretches, strict=True))
        self._newest = torch.empty(0)
        self._step = 0

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return self._model.num_layers

    @torch.inference_mode()
    def prefill(self) -> list[int]:
        """Run the prompts at full depth, and return the first new token of each row."""
        hidden = self.batch.prefill() if self._read is None else self._read.states(self.batch, self._prompts)
        logits = self._model.logits(self._model.num_layers, hidden[:, 0])
        self._newest = choose_tokens(self._sampling, logits, self._keys, [0] * len(self._keys))
        return self._newest.tolist()

    @torch.inference_mode()
    def step(self) -> tuple[list[int], list[int]]:
        """Read the newest token of each row, and return the next ones and the layers that they were read off."""
        self._step += 1
        self.batch.cache.advance(1)
        self._newest, exit_layers = self._climb()
        return self._newest.tolist(), exit_layers

    def _climb(self) -> tuple[Tensor, list[int]]:
        climbing = self._start()
        context_of_all = climbing.context
        exit_layers = [self._model.num_layers] * len(self._keys)
        tokens = torch.empty(len(self._keys), dtype=torch.int64, device=self._model.device)
        left_with = climbing.hidden[:, 0].clone()  # what the rows whose logits are not known leave with
        waiting: list[int] = []
        for exit_layer, layers in self._stretches:
            climbing.hidden = self._owed.run(layers, climbing.hidden, climbing.rows, climbing.context)
            view = climbing.view(self._model, exit_layer, self._step)
            leaving = places_leaving(self._rule, view, climbing.state)
            if leaving:
                left = climbing.rows if len(leaving) == view.rows else climbing.rows.take(leaving)
                for row in left.numbers:
                    exit_layers[row] = exit_layer
                if exit_layer < view.num_layers:
                    self._owed.leave(left, view.hidden[leaving])
                if says_at_once(self._model, view):
                    self._choose(tokens, left.numbers, view.logits_of(leaving))
                else:
                    left.put(left_with, state_behind_exit(self._model, view, leaving))
                    waiting += left.numbers.tolist()
            if len(leaving) == view.rows:
                break
            if climbing.past is not None:
                climbing.past = view.history
            if leaving:
                self._keep_climbing(climbing, leaving)
        if waiting:
            rows = self.batch.all_rows().take(sorted(waiting))
            logits = logits_behind_exits(self._model, self.batch, rows.of(left_with), context_of_all)
            self._choose(tokens, rows.numbers, logits)
        return tokens, exit_layers

    def _choose(self, tokens: Tensor, rows: RowNumbers, logits: Tensor) -> None:
        keys = [self._keys[row] for row in rows]
        chosen = choose_tokens(self._sampling, logits, keys, [self._step] * len(keys))
        Rows(rows, tokens.device).put(tokens, chosen)

    def _start(self) -> "_Climbing":
        rows = self.batch.all_rows()
        context = self._context(rows)
        state = self._rule.start(len(rows), self._model.num_layers)
        return _Climbing(
            rows=rows,
            hidden=self.batch.stepper.embed(self._newest.unsqueeze(1), context.positions),
            context=context,
            state={name: tensor.to(self._model.device) for name, tensor in state.items()},
            keys=self._keys,
            past=self._no_history_yet(len(rows)) if self._rule.reads_history else None,
        )

    def _no_history_yet(self, rows: int) -> Tensor:
        return torch.empty(rows, 0, self._model.width, dtype=self.batch.dtype, device=self._model.device)

    def _context(self, rows: Rows) -> DecoderContext:
        column = self.batch.cache.length - 1
        return self.batch.context(rows, column, column + 1)

    def _keep_climbing(self, climbing: "_Climbing", leaving: list[int]) -> None:
        gone = set(leaving)
        places = [place for place in range(len(climbing.rows)) if place not in gone]
        kept = torch.tensor(places, device=self._model.device)
        climbing.rows = climbing.rows.take(places)
        climbing.hidden = climbing.hidden.index_select(0, kept)
        climbing.context = self._context(climbing.rows)
        climbing.state = {name: tensor.index_select(0, kept) for name, tensor in climbing.state.items()}
        climbing.keys = [climbing.keys[place] for place in places]
        if climbing.past is not None:
            climbing.past = climbing.past.index_select(0, kept)

    def keep(self, places: list[int]) -> None:
        """Drop all rows but those at these places."""
        rows = self.batch.all_rows().take(places)
        self.batch.keep(rows)
        self._owed.keep(rows)
        self._newest = rows.of(self._newest)
        self._keys = [self._keys[place] for place in places]

    def late_layers(self, place: int, exit_layers: Sequence[int]) -> list[int]:
        """Return how many layers the token read for each new token has got late, given where these left."""
        return late_layers(self.batch.cache.ledger, place, self.batch.prompt_columns, exit_layers)


def places_leaving(rule: ExitRule, view: TokenView, state: State) -> list[int]:
    """Return the places of the rows that leave at this layer; at the last one, all of them."""
    if view.layer == view.num_layers:
        return list(range(view.rows))
    return [place for place, goes in enumerate(ask(rule, view, state).tolist()) if goes]


def says_at_once(model: MultiExitDecoder, view: TokenView) -> bool:
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


def late_layers(ledger: Ledger, row: int, prompt_columns: int, exit_layers: Sequence[int]) -> list[int]:
    """Return, for each new token of a row, how many layers the token read for it was given after it left.

    The first is read off the prompt, which leaves nothing for later. ``exit_layers``: of all new tokens.
    """
    read = prompt_columns + np.arange(len(exit_layers) - 1)
    cached = (ledger.stored[:, row] > read[:, None]).sum(axis=1)
    return [0, *(cached - np.array(exit_layers[1:], dtype=np.int64)).tolist()]


@dataclass
class _Climbing:
    """State of one step, for the rows that have not exited yet.

    Attributes:
        rows: which they are.
        hidden: [rows, 1, width].
        context: what layers need beside it.
        state: of the rule.
        keys: of their prompts.
        past: states at the exits so far [rows, exits, width], or None if the rule does not read them.
    """

    rows: Rows
    hidden: Tensor
    context: DecoderContext
    state: State
    keys: list[int]
    past: Tensor | None

    def view(self, model: MultiExitDecoder, layer: int, step: int) -> TokenView:
        """Return what the rule may read at layer ``layer``."""
        return TokenView(model, layer, self.hidden, step, self.keys, past=self.past)
