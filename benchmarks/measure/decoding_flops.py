"""Floating point operations of decoding, token by token: counted once a layer and an exit, times the calls.

A layer costs a token a constant, and a part for every column that it attends to. What a rule reads at the exits that it
is asked at, the LM head that gives the token, and the keys and values that skipped layers are given later are counted
too; padding is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.operations import ExitCost, count_exits, count_operations, eager_attention
from consistentee.backbones.decoders import DecoderContext
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack
from consistentee.models.decoder.sublayers import SkippedSublayers
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_view import TokenView

_COLUMN_COUNTS = (1, 2, 5)
"""Columns attended to that are counted: two determine the line, the last one checks it."""


@dataclass(frozen=True)
class TokenCost:
    """Operations of a layer on one token that attends to n columns, itself included: ``constant + a_column * n``."""

    constant: int
    a_column: int

    @classmethod
    def fit(cls, counted: Sequence[int]) -> "TokenCost":
        """Return the line through the counts at :data:`_COLUMN_COUNTS`. Raises ValueError if the last is not on it."""
        first, second, last = _COLUMN_COUNTS
        a_column = (counted[1] - counted[0]) // (second - first)
        cost = cls(counted[0] - a_column * first, a_column)
        if cost.constant + cost.a_column * last != counted[2]:
            raise ValueError(f"operations {list(counted)} with {_COLUMN_COUNTS} columns do not lie on a line")
        return cost

    def __call__(self, tokens: int, columns: int) -> int:
        """Return the operations of some tokens that attend to ``columns`` columns in all."""
        return self.constant * tokens + self.a_column * columns


class _Columns:
    """A cache that has some columns of one row already, whatever is in them."""

    def __init__(self, columns: int) -> None:
        self._columns = columns

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return as many columns as there are."""
        return self._stretched(keys), self._stretched(values)

    def _stretched(self, new: Tensor) -> Tensor:
        return new.repeat_interleave(self._columns, dim=2)


class DecodingFlops:
    """Counts the operations of one model; layers are counted once, every rule when it is first asked for."""

    def __init__(self, model: MultiExitDecoder) -> None:
        self._model = model
        token = torch.tensor([[self._ordinary_token()]], device=model.device)
        position = torch.zeros_like(token)
        with eager_attention([model.backbone]), torch.no_grad():
            self._hidden = model.stepper.embed(token, position)
            rotation = model.stepper.rotation(self._hidden, position)
            self.layers = [
                TokenCost.fit([self._count_layer(layer, position, rotation, n) for n in _COLUMN_COUNTS])
                for layer in self._all_layers
            ]
            self.filling = [
                count_operations(partial(model.stepper.keys_values, layer, self._hidden, rotation))[0]
                for layer in self._all_layers
            ]
            self.head, _ = count_operations(partial(model.logits, model.num_layers, self._hidden[:, 0]))

    @property
    def _all_layers(self) -> range:
        return range(1, self._model.num_layers + 1)

    def _ordinary_token(self) -> int:
        return 1 if self._model.pad_id == 0 else 0

    def _count_layer(self, layer: int, position: Tensor, rotation: Any, columns: int) -> int:
        context = DecoderContext(position, rotation, None, _Columns(columns))
        return count_operations(partial(self._model.stepper.step, layer, self._hidden, context))[0]

    def prefill(self, prompt_tokens: Sequence[int]) -> int:
        """Return the operations of prompts at full depth, and of the first new token of each.

        Every token of a prompt is multiplied with all of its columns: attention masks later ones, but computes them.
        """
        tokens, columns = sum(prompt_tokens), sum(n * n for n in prompt_tokens)
        return sum(layer(tokens, columns) for layer in self.layers) + self.head * len(prompt_tokens)

    def full_decoding(self, written: Generations) -> int:
        """Return the operations that the decoded tokens would have taken at full depth."""
        tokens, columns = _decoded(written)
        return sum(layer(tokens, columns) for layer in self.layers) + self.head * tokens

    def decoding(self, written: Generations, rule: ExitRule, kv: str) -> int:
        """Return the operations of the decoded tokens: layers run, exits asked, keys and values filled later."""
        if isinstance(written, SpeculativeGenerations):
            raise TypeError("what is drafted and verified is counted by `speculating`")
        total = 0
        costs = self._costs_by_step(rule, max((len(tokens) for tokens in written.tokens), default=0))
        rows = zip(written.prompt_tokens, written.exit_layers, written.late_layers, strict=True)
        for prompt_tokens, exits, late in rows:
            # The token at place s is written by reading the one before it, whose columns are the prompt's and s more.
            for step, (left, filled) in enumerate(zip(exits.tolist()[1:], late.tolist()[1:], strict=True), start=1):
                columns, skipped = prompt_tokens + step, self._model.skipped_layers(left)
                total += sum(self._layer(layer)(1, columns) for layer in self._all_layers if layer not in skipped)
                total += sum(cost for layer, cost in costs[step].reading.items() if layer <= left)
                total += costs[step].answering[left]
                total += self._filling(skipped[:filled], columns, kv)
        return total

    def _costs_by_step(self, rule: ExitRule, steps: int) -> list[ExitCost]:
        """Return what exits cost at each step but the first, which is the prompt's: a rule may read at some alone."""
        return [self.exit_cost(rule, max(step, 1)) for step in range(steps)]

    def _filling(self, layers: range, columns: int, kv: str) -> int:
        """Return what layers cost that are given keys and values after their token has left."""
        if kv == "exact":
            return sum(self._layer(layer)(1, columns) for layer in layers)
        return sum(self.filling[layer - 1] for layer in layers)

    def _layer(self, layer: int) -> TokenCost:
        """Return what layer ``layer`` (1-based) costs."""
        return self.layers[layer - 1]

    def speculating(self, written: SpeculativeGenerations) -> int:
        """Return the operations of drafts and of their verification: rejected tokens cost what accepted ones do.

        Columns are those of the text so far, averaged over it, for the tokens that were rejected lie among them. A
        branch that drafts reads what the layers read; the model without some sublayers reads once for every draft.
        """
        branch, drafting = self._branch(written.draft_layer)
        layers = self.layers if branch is None else [*self.layers, branch]
        total = 0
        rows = zip(written.prompt_tokens, written.tokens, written.drafted, written.passes, strict=True)
        for prompt_tokens, tokens, drafted, passes in rows:
            read = drafted + passes
            columns = round(read * (prompt_tokens + len(tokens) / 2))
            total += sum(layer(read, columns) for layer in layers)
            total += drafting * drafted + self.head * read
            if written.skipped is not None:
                total += self._without(written.skipped, drafted, round(drafted * (prompt_tokens + len(tokens) / 2)))
        return total

    @torch.no_grad()
    def _without(self, skipped: SkippedSublayers, tokens: int, columns: int) -> int:
        """Return what the layers but for some sublayers cost some tokens that attend to ``columns`` columns in all."""
        total = sum(layer(tokens, columns) for layer in self.layers)
        for layer in {*skipped.attention, *skipped.mlp}:
            mlp = tokens * count_operations(partial(self._model.stepper.feed_forward, layer, self._hidden))[0]
            total -= mlp if layer in skipped.mlp else 0
            total -= self._layer(layer)(tokens, columns) - mlp if layer in skipped.attention else 0
        return total

    def prefill_to_speculate(self, written: SpeculativeGenerations) -> int:
        """Return the operations of prompts at full depth, which a branch that drafts reads too."""
        tokens, columns = sum(written.prompt_tokens), sum(n * n for n in written.prompt_tokens)
        branch, _ = self._branch(written.draft_layer)
        return self.prefill(written.prompt_tokens) + (0 if branch is None else branch(tokens, columns))

    @torch.no_grad()
    def _branch(self, layer: int) -> tuple[TokenCost | None, int]:
        """Return what a branch costs, if there is one, and what drafting a token costs behind it, or else the exit."""
        model = self._model
        if not layer:  # the model itself drafts
            return None, self.head
        if not model.has_branch(layer):
            return None, self.exit_cost(NeverExit(), 1).answering[layer]
        stack = DecodingFlops(DecoderStack(model, layer))
        return stack.layers[-1], stack.head

    @torch.no_grad()
    def exit_cost(self, rule: ExitRule, step: int) -> ExitCost:
        """Count what a rule reads at the exits at one step, of a token that never leaves."""
        model = self._model

        def view_at(layer: int, past: Tensor | None) -> TokenView:
            return TokenView(model, layer, self._hidden, step, [0], past=past)

        past = torch.empty(1, 0, model.width, device=model.device) if rule.reads_history else None

        def answer(view: TokenView) -> Tensor:  # the LM head alone, where closing layers are counted among the layers
            return model.logits(model.num_layers, self._hidden[:, 0]) if model.closing else view.predictions

        return count_exits(rule, model.exit_layers, view_at, past, answer=answer)


def _decoded(written: Generations) -> tuple[int, int]:
    """Return how many tokens were decoded, and how many columns they attended to in all."""
    counts = [max(len(tokens) - 1, 0) for tokens in written.tokens]
    columns = [n * prompt + n * (n + 1) // 2 for n, prompt in zip(counts, written.prompt_tokens, strict=True)]
    return sum(counts), sum(columns)
