"""TokenDecoder: decodes a batch token by token, where a rule says at which layer each of them leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.step.cache import Ledger, RowNumbers, Rows
from consistentee.engine.step.owed_tokens import KVPolicy, owed_tokens
from consistentee.engine.step.prompt_batch import PromptBatch
from consistentee.engine.step.read_prompts import ReadPrompts
from consistentee.engine.step.sampling import Sampling, choose_tokens
from consistentee.engine.step.token_batch import TokenBatch
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, State, ask
from consistentee.traces.token_view import TokenView, prompt_key


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
        exit_layers = [self._model.num_layers] * len(self._keys)
        answers = self._answers(climbing)
        for exit_layer, layers in self._stretches:
            climbing.hidden = self._owed.run(layers, climbing.hidden, climbing.rows, climbing.context)
            view = climbing.view(self._model, exit_layer, self._step)
            leaving = places_leaving(self._rule, view, climbing.state)
            if leaving:
                left = climbing.rows if len(leaving) == view.rows else climbing.rows.take(leaving)
                answers.leave(view, leaving, left.numbers, [climbing.keys[place] for place in leaving])
                for row in left.numbers:
                    exit_layers[row] = exit_layer
                if exit_layer < view.num_layers:
                    self._owed.leave(left, view.hidden[leaving])
            if len(leaving) == view.rows:
                break
            if climbing.past is not None:
                climbing.past = view.history
            if leaving:
                self._keep_climbing(climbing, leaving)
        return answers.tokens(), exit_layers

    def _answers(self, everyone: "_Climbing") -> "_Answers | _ClosedAnswers":
        """Return what takes the next tokens of all rows, which begin to climb."""
        if self._model.closing:
            return _ClosedAnswers(self._model, self._sampling, self._step, everyone, self.batch)
        return _Answers(self._model, self._sampling, self._step, len(self._keys))

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
        """Drop the rows at some places from what goes up."""
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


def close(model: MultiExitDecoder, batch: TokenBatch, hidden: Tensor, context: DecoderContext) -> Tensor:
    """Run the closing layers behind the exits of some rows, and read the LM head.

    [rows, 1, width] -> [rows, vocabulary].
    """
    return model.logits(model.num_layers, batch.run(model.closing, hidden, context)[:, 0])


def late_layers(ledger: Ledger, row: int, prompt_columns: int, exit_layers: Sequence[int]) -> list[int]:
    """Return, for each new token of a row, how many layers the token read for it was given after it left.

    The first is read off the prompt, which leaves nothing for later. ``exit_layers``: of all new tokens.
    """
    read = prompt_columns + np.arange(len(exit_layers) - 1)
    cached = (ledger.stored[:, row] > read[:, None]).sum(axis=1)
    return [0, *(cached - np.array(exit_layers[1:], dtype=np.int64)).tolist()]


@dataclass
class _Climbing:
    """What one step carries upwards, for the rows that have not left yet.

    Attributes:
        rows: which they are.
        hidden: [rows, 1, width].
        context: what layers need beside it.
        state: of the rule.
        keys: of their prompts.
        past: states at the exits so far [rows, exits, width], or None where nobody reads them.
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


class _Answers:
    """The next tokens of one step.

    A shared LM head, the largest matrix of a small model, is read once for all rows that wait for it. Rows whose logits
    the rule has read already need no second reading.
    """

    def __init__(self, model: MultiExitDecoder, sampling: Sampling | None, step: int, rows: int) -> None:
        self._model = model
        self._sampling = sampling
        self._step = step
        self._tokens = torch.empty(rows, dtype=torch.int64, device=model.device)
        self._states: list[Tensor] = []
        self._rows: list[int] = []
        self._keys: list[int] = []

    def leave(self, view: TokenView, places: list[int], rows: RowNumbers, keys: list[int]) -> None:
        """Let the rows at some places of a view say what they leave with; ``rows`` are their numbers in the batch."""
        if view.has_logits or not self._model.shares_head:
            self._choose(view.logits_of(places), rows.tolist(), keys)
        else:
            self._states.append(view.head_states_of(places))
            self._rows += rows.tolist()
            self._keys += keys

    def tokens(self) -> Tensor:
        """Return the next token of every row, int64 [rows], when all have left."""
        if self._states:
            self._choose(self._model.stepper.unembed(torch.cat(self._states)), self._rows, self._keys)
        return self._tokens

    def _choose(self, logits: Tensor, rows: list[int], keys: list[int]) -> None:
        index = torch.tensor(rows, device=self._tokens.device)
        self._tokens.index_copy_(0, index, choose_tokens(self._sampling, logits, keys, [self._step] * len(keys)))


class _ClosedAnswers:
    """The same where closing layers lie behind the exits: at the end of the step all rows run them together."""

    def __init__(
        self, model: MultiExitDecoder, sampling: Sampling | None, step: int, everyone: _Climbing, batch: PromptBatch
    ) -> None:
        """``everyone``: all rows of the batch."""
        self._model = model
        self._sampling = sampling
        self._step = step
        self._batch = batch
        self._context = everyone.context
        self._keys = everyone.keys
        self._hidden = torch.empty_like(everyone.hidden)

    def leave(self, view: TokenView, places: list[int], rows: RowNumbers, keys: list[int]) -> None:
        """Keep what the rows at some places of a view leave with; ``rows`` are their numbers in the batch."""
        self._hidden[torch.from_numpy(rows).to(self._hidden.device)] = view.hidden[places]

    def tokens(self) -> Tensor:
        """Return the next token of every row, int64 [rows], when all have left."""
        logits = close(self._model, self._batch, self._hidden, self._context)
        return choose_tokens(self._sampling, logits, self._keys, [self._step] * len(self._keys))
