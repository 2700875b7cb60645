"""Count floating point operations with torch's counter, which sees matrix products; a multiply-add is two operations.

Attention is not fused while it is counted, because the counter does not see fused attention on a CPU. Each layer and
exit is counted once, times the calls; padding is not counted.

Classification is counted row by row: a layer costs a polynomial of the row's tokens, ``a + b*n + c*n^2``. If tokens
exit by themselves, it costs its live tokens, and keys and values of all. Decoding is counted token by token: a layer
costs a constant and a part for every attended column. Later keys and values of skipped layers are included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from consistentee.backbones.decoders import DecoderContext
from consistentee.backbones.token_exits import TokenContext, TokenExitStepper
from consistentee.data.encoding import Batch, Encoding
from consistentee.engine.classify import LiveView, no_history_yet
from consistentee.engine.generate import Generations
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit, State, ask, start_rule
from consistentee.rules.view import LayerView
from consistentee.traces.token_view import TokenView

Result = TypeVar("Result")
View = TypeVar("View", bound=LayerView)


class ExitCost(NamedTuple):
    """Operations of one row at each exit layer: of the rule's reads, with what later layers need, and of the answer."""

    reading: dict[int, int]
    answering: dict[int, int]


def count_operations(call: Callable[[], Result]) -> tuple[int, Result]:
    """Count the operations of a call, and return them with its result."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = call()
    return int(counter.get_total_flops()), result


def count_exits(
    rule: ExitRule,
    layers: Sequence[int],
    view_at: Callable[[int, Tensor | None], View],
    past: Tensor | None,
    answer: Callable[[View], Tensor] = attrgetter("predictions"),
) -> ExitCost:
    """Count the reads of a rule at every exit but the last.

    Args:
        rule: the exit rule.
        layers: of the exits, the last layer included.
        view_at: makes the view of a layer, given the history before it.
        past: the history before the first layer [1, 0, width], or None if it is not read.
        answer: computes the answer of a row that exits at a view's layer.
    """
    cost = ExitCost({}, {})
    state: State = {}
    for layer in layers:
        view = view_at(layer, past)
        if layer == layers[0]:
            state = start_rule(rule, view.rows, view.num_layers, view.device)
        cost.reading[layer] = 0
        if layer < view.num_layers:
            cost.reading[layer], _ = count_operations(partial(ask, rule, view, state))
            if past is not None:
                kept, past = count_operations(partial(getattr, view, "history"))
                cost.reading[layer] += kept
        cost.answering[layer], _ = count_operations(partial(answer, view))
    return cost


def fit_exactly(terms: ArrayLike, counted: Sequence[int]) -> list[int]:
    """Fit whole coefficients of terms [counts, K] to counts. Raises ValueError if some count is not their sum."""
    found = np.linalg.lstsq(np.asarray(terms, dtype=float), np.asarray(counted, dtype=float))[0].round()
    coefficients = found.astype(np.int64)
    if (np.asarray(terms) @ coefficients).tolist() != list(counted):
        raise ValueError(
            f"operations {list(counted)} do not follow from the numbers of tokens; a layer, and what a rule reads of "
            "it, must cost every row of the same length the same"
        )
    return coefficients.tolist()


# ---------------------------------------------------------------------------------------------- classification


ALL_LIVE = ((2, 2), (4, 4), (8, 8), (12, 12))
"""Row lengths and live tokens that are counted: three determine the polynomial, the last one checks it."""

PARTLY_LIVE = ((8, 3), (12, 5), (12, 1))
"""Counted too if tokens exit: the first determines what an exited token costs, the others check it."""


@dataclass(frozen=True)
class RowCost:
    """Operations on a row with n tokens, m of them live: ``constant + linear*m + quadratic*n*m + attended*(n-m)``.

    Exact. A token that is not live is only attended to, by its key and value.
    """

    constant: int
    linear: int
    quadratic: int
    attended: int = 0

    @classmethod
    def fit(cls, counted: Sequence[int], points: Sequence[tuple[int, int]] = ALL_LIVE) -> "RowCost":
        """Fit the cost to the counts at some n and m. Raises ValueError if they do not lie on it."""
        return cls(*fit_exactly([(1, m, n * m, n - m) for n, m in points], counted))

    def __call__(self, tokens: ArrayLike, live: ArrayLike | None = None) -> NDArray[np.int64]:
        """Count rows with these numbers of tokens and of live tokens (None: all); 0 without live tokens."""
        n = np.asarray(tokens, dtype=np.int64)
        m = n if live is None else np.asarray(live, dtype=np.int64)
        return np.where(m > 0, self.constant + self.linear * m + self.quadratic * n * m + self.attended * (n - m), 0)


class _CountedLayer(NamedTuple):
    operations: int
    hidden: Tensor
    batch: Batch


class FlopModel:
    """Count the operations of one model: its layers once, each rule when needed."""

    def __init__(self, model: MultiExitModel) -> None:
        self._model, self._numbers = model, range(1, model.num_layers + 1)
        points = ALL_LIVE + (PARTLY_LIVE if isinstance(model.stepper, TokenExitStepper) else ())
        with torch.no_grad():
            runs = [self._run_layers(tokens, live) for tokens, live in points]
        self._all_live = [layers for _, layers in runs[: len(ALL_LIVE)]]
        self.embedding = RowCost.fit([operations for operations, _ in runs[: len(ALL_LIVE)]])
        by_layer = zip(*(layers for _, layers in runs), strict=True)
        self.layers = [RowCost.fit([counted.operations for counted in layer], points) for layer in by_layer]

    def row_flops(
        self, lengths: ArrayLike, exits: ArrayLike, rule: ExitRule | None, live_tokens: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Return the operations of every row: embedding, layers run, what the rule reads, the answering classifier.

        Args:
            lengths: tokens a row, [N].
            exits: 1-based exit layers, [N].
            rule: the exit rule; None for a bound that knows where to leave without reading anything.
            live_tokens: tokens of a row that run each layer, [N, L]; None if all of them do.
        """
        tokens, layers = np.asarray(lengths, dtype=np.int64), np.asarray(exits, dtype=np.int64)
        live = None if live_tokens is None else np.asarray(live_tokens)
        total = self.embedding(tokens)
        for index, (reading, answering) in enumerate(self.rule_cost(NeverExit() if rule is None else rule)):
            ran, left = layers > index, layers == index + 1
            layer = self.layers[index](tokens, None if live is None else live[:, index])
            total = total + np.where(ran, layer + reading(tokens), 0)
            total = total + np.where(left, answering(tokens), 0)
        return total

    def full_flops(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Count the operations of every row in the stock model, without rule and companion.

        Layers that were removed cost as much as the last one that is left.
        """
        tokens, companion = np.asarray(lengths, dtype=np.int64), self._model.companion_layers
        total = self.row_flops(tokens, np.full(tokens.shape, self._model.num_layers), NeverExit())
        total += max(0, self._model.stock_layers - self._model.num_layers) * self.layers[-1](tokens)
        if not companion:
            return total
        # The second embedding, for the full backbone, is counted in its first layer.
        return total - self.embedding(tokens) - sum(layer(tokens) for layer in self.layers[:companion])

    @torch.no_grad()
    def rule_cost(self, rule: ExitRule) -> list[tuple[RowCost, RowCost]]:
        """Count at every layer what a rule reads, with what is kept for later layers, and the answer."""
        costs = [self._exit_cost(rule, layers) for layers in self._all_live]
        read = [RowCost.fit([cost.reading[layer] for cost in costs]) for layer in self._numbers]
        answered = [RowCost.fit([cost.answering[layer] for cost in costs]) for layer in self._numbers]
        return list(zip(read, answered, strict=True))

    def _exit_cost(self, rule: ExitRule, layers: list[_CountedLayer]) -> ExitCost:
        def view_at(layer: int, past: Tensor | None) -> LiveView:
            _, hidden, batch = layers[layer - 1]
            return LiveView(self._model, layer, hidden, batch, past=past)

        return count_exits(rule, self._numbers, view_at, no_history_yet(self._model, rule, 1))

    def _run_layers(self, tokens: int, live: int) -> tuple[int, list[_CountedLayer]]:
        stepper = self._model.stepper
        ordinary = 1 if self._model.tokenizer.pad_token_id == 0 else 0
        types = [0] * tokens if stepper.uses_token_types else None
        batch = self._model.collate([Encoding([ordinary] * tokens, types)])
        embedding, (hidden, context) = count_operations(partial(stepper.begin, batch))
        if isinstance(context, TokenContext):
            exit_layers = torch.zeros_like(context.exit_layers)
            exit_layers[:, :live] = self._model.num_layers
            context = replace(context, exit_layers=exit_layers)
        layers = []
        for layer in self._numbers:
            operations, hidden = count_operations(partial(stepper.step, layer, hidden, context))
            layers.append(_CountedLayer(operations, hidden, batch))
        return embedding, layers


# ---------------------------------------------------------------------------------------------- decoding


_COLUMN_COUNTS = (1, 2, 5)
"""Numbers of columns that are counted: two determine the line, the last one checks it."""


@dataclass(frozen=True)
class TokenCost:
    """Operations of a layer on one token that attends to n columns including itself: ``constant + a_column * n``."""

    constant: int
    a_column: int

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
        with torch.no_grad():
            self._hidden = model.stepper.embed(token, position)
            rotation = model.stepper.rotation(self._hidden, position)
            self.layers: list[TokenCost] = []
            self.filling: list[int] = []
            for layer in range(1, model.num_layers + 1):
                contexts = [DecoderContext(position, rotation, None, _Columns(n)) for n in _COLUMN_COUNTS]
                steps = [partial(model.stepper.step, layer, self._hidden, context) for context in contexts]
                counted = [count_operations(step)[0] for step in steps]
                self.layers.append(TokenCost(*fit_exactly([(1, n) for n in _COLUMN_COUNTS], counted)))
                fill = partial(model.stepper.keys_values, [layer], self._hidden, rotation)
                self.filling.append(count_operations(fill)[0])
            self.head, _ = count_operations(partial(model.logits, model.num_layers, self._hidden[:, 0]))

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
