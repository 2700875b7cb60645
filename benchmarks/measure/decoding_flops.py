"""Count floating point operations of decoding, token by token: once for each layer and exit, times the calls.

A layer costs a token a constant and a part for every attended column. The count includes the reads of a rule, the LM
head and later keys and values of skipped layers, but no padding.
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
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_view import TokenView

_COLUMN_COUNTS = (1, 2, 5)
"""Numbers of columns that are counted: two determine the line, the last one checks it."""


@dataclass(frozen=True)
class TokenCost:
    """Operations of a layer on one token that attends to n columns including itself: ``constant + a_column * n``."""

    constant: int
    a_column: int

    @classmethod
    def fit(cls, counted: Sequence[int]) -> "TokenCost":
        """Fit a line to the counts at :data:`_COLUMN_COUNTS`. Raises ValueError if the last is not on it."""
        first, second, last = _COLUMN_COUNTS
        a_column = (counted[1] - counted[0]) // (second - first)
        cost = cls(counted[0] - a_column * first, a_column)
        if cost.constant + cost.a_column * last != counted[2]:
            raise ValueError(f"operations {list(counted)} with {_COLUMN_COUNTS} columns do not lie on a line")
        return cost

    def __call__(self, tokens: int, columns: int) -> int:
        return self.constant * tokens + self.a_column * columns


@dataclass(frozen=True)
class _Columns:
    """A cache with some columns of one row; their content does not matter."""

    columns: int

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return keys.repeat_interleave(self.columns, dim=2), values.repeat_interleave(self.columns, dim=2)


class DecodingFlops:
    """Count the operations of one model: its layers once, each rule when needed."""

    def __init__(self, model: MultiExitDecoder) -> None:
        self._model = model
        token = torch.tensor([[1 if model.pad_id == 0 else 0]], device=model.device)
        position = torch.zeros_like(token)
        with eager_attention([model.backbone]), torch.no_grad():
            self._hidden = model.stepper.embed(token, position)
            rotation = model.stepper.rotation(self._hidden, position)
            self.layers: list[TokenCost] = []
            self.filling: list[int] = []
            for layer in range(1, model.num_layers + 1):
                counted = [self._count_layer(layer, position, rotation, n) for n in _COLUMN_COUNTS]
                self.layers.append(TokenCost.fit(counted))
                fill = partial(model.stepper.keys_values, [layer], self._hidden, rotation)
                self.filling.append(count_operations(fill)[0])
            self.head, _ = count_operations(partial(model.logits, model.num_layers, self._hidden[:, 0]))

    def _count_layer(self, layer: int, position: Tensor, rotation: Any, columns: int) -> int:
        context = DecoderContext(position, rotation, None, _Columns(columns))
        return count_operations(partial(self._model.stepper.step, layer, self._hidden, context))[0]

    def prefill(self, prompt_tokens: Sequence[int]) -> int:
        """Count the operations of prompts at full depth and of their first new tokens.

        Attention computes all columns of a prompt for each token, also the masked ones.
        """
        tokens, columns = sum(prompt_tokens), sum(n * n for n in prompt_tokens)
        return sum(layer(tokens, columns) for layer in self.layers) + self.head * len(prompt_tokens)

    def full_decoding(self, written: Generations) -> int:
        """Count the operations of the decoded tokens at full depth."""
        counts = [max(len(tokens) - 1, 0) for tokens in written.tokens]
        tokens, texts = sum(counts), zip(counts, written.prompt_tokens, strict=True)
        columns = sum(n * prompt + n * (n + 1) // 2 for n, prompt in texts)
        return sum(layer(tokens, columns) for layer in self.layers) + self.head * tokens

    def decoding(self, written: Generations, rule: ExitRule, kv: str) -> int:
        """Count the operations of the decoded tokens: layers, exits, and later keys and values."""
        total = 0
        # A rule may read at some steps only; step 0 is the prompt's.
        steps = range(1, max((len(tokens) for tokens in written.tokens), default=0))
        costs = {step: self.exit_cost(rule, step) for step in steps}
        rows = zip(written.prompt_tokens, written.exit_layers, written.late_layers, strict=True)
        for prompt_tokens, exits, late in rows:
            # The token at place s reads the one before it, with the columns of the prompt and s more.
            for step in range(1, len(exits)):
                exit_layer, filled = int(exits[step]), int(late[step])
                columns, skipped = prompt_tokens + step, self._model.skipped_layers(exit_layer)
                total += sum(cost(1, columns) for layer, cost in enumerate(self.layers, 1) if layer not in skipped)
                total += sum(cost for layer, cost in costs[step].reading.items() if layer <= exit_layer)
                total += costs[step].answering[exit_layer]
                for layer in skipped[:filled]:
                    total += self.layers[layer - 1](1, columns) if kv == "exact" else self.filling[layer - 1]
        return total

    def speculating(self, written: SpeculativeGenerations) -> int:
        """Count the operations of drafts and their verification, rejected tokens included.

        The number of columns is averaged over the text, because rejected tokens lie within it. A branch that drafts
        reads the same tokens as the layers; the model without some sublayers reads the drafted ones.
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
                total += self.head * drafted
                total += self._without(written.skipped, drafted, round(drafted * (prompt_tokens + len(tokens) / 2)))
        return total

    @torch.no_grad()
    def _without(self, skipped: SkippedSublayers, tokens: int, columns: int) -> int:
        total = sum(layer(tokens, columns) for layer in self.layers)
        for layer in {*skipped.attention, *skipped.mlp}:
            mlp = tokens * count_operations(partial(self._model.stepper.feed_forward, layer, self._hidden))[0]
            total -= mlp if layer in skipped.mlp else 0
            total -= self.layers[layer - 1](tokens, columns) - mlp if layer in skipped.attention else 0
        return total

    def prefill_to_speculate(self, written: SpeculativeGenerations) -> int:
        """Count the operations of prompts at full depth, also in a branch that drafts."""
        tokens, columns = sum(written.prompt_tokens), sum(n * n for n in written.prompt_tokens)
        branch, _ = self._branch(written.draft_layer)
        return self.prefill(written.prompt_tokens) + (0 if branch is None else branch(tokens, columns))

    @torch.no_grad()
    def _branch(self, layer: int) -> tuple[TokenCost | None, int]:
        """Return the cost of a branch, if there is one, and that of a drafted token after it or at the exit."""
        model = self._model
        if not layer:  # no exit drafts
            return None, 0
        if not model.has_branch(layer):
            return None, self.exit_cost(NeverExit(), 1).answering[layer]
        stack = DecodingFlops(DecoderStack(model, layer))
        return stack.layers[-1], stack.head

    @torch.no_grad()
    def exit_cost(self, rule: ExitRule, step: int) -> ExitCost:
        """Count the reads of a rule at all exits at one step."""
        model = self._model

        def view_at(layer: int, past: Tensor | None) -> TokenView:
            return TokenView(model, layer, self._hidden, step, [0], past=past)

        past = torch.empty(1, 0, model.width, device=model.device) if rule.reads_history else None

        def answer(view: TokenView) -> Tensor:  # only the LM head, because closing layers count as layers
            return model.logits(model.num_layers, self._hidden[:, 0]) if model.last_layers else view.predictions

        return count_exits(rule, model.exit_layers, view_at, past, answer=answer)
