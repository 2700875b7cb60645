"""Count floating point operations of early-exit classification, row by row: once for each layer, times the calls.

The cost of a layer is a polynomial of the row's tokens, ``a + b*n + c*n^2``. If tokens exit by themselves, a layer
costs its live tokens, and keys and values of all. Padding is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from benchmarks.measure.operations import ExitCost, count_exits, count_operations, eager_attention
from consistentee.backbones.token_exits import TokenContext, TokenExitStepper
from consistentee.data.encoding import Batch, Encoding
from consistentee.engine.classify import LiveView, no_history_yet
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit

ALL_LIVE = ((2, 2), (4, 4), (8, 8), (12, 12))
"""Row lengths and live tokens that are counted: three determine the polynomial, the last one checks it."""

PARTLY_LIVE = ((8, 3), (12, 5), (12, 1))
"""Those that are counted too if tokens exit: one determines what an exited token costs, the others check it."""


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
        n, m = np.transpose(points)
        terms = np.stack([np.ones_like(n), m, n * m, n - m], axis=1).astype(float)
        cost = cls(*(round(part) for part in np.linalg.lstsq(terms, np.asarray(counted, dtype=float))[0]))
        if cost(n, m).tolist() != list(counted):
            raise ValueError(
                f"operations {counted} at tokens and live ones {points} are not quadratic in the tokens; "
                "a layer, and what a rule reads of it, must cost every row of the same length the same"
            )
        return cost

    def __call__(self, tokens: ArrayLike, live: ArrayLike | None = None) -> NDArray[np.int64]:
        """Count rows with these numbers of tokens and of live tokens (None: all); 0 without live tokens."""
        n = np.asarray(tokens, dtype=np.int64)
        m = n if live is None else np.asarray(live, dtype=np.int64)
        return np.where(m > 0, self.constant + self.linear * m + self.quadratic * n * m + self.attended * (n - m), 0)


class _CountedLayer(NamedTuple):
    operations: int
    hidden: torch.Tensor
    batch: Batch


class FlopModel:
    """Count the operations of one model: its layers once, each rule when needed."""

    def __init__(self, model: MultiExitModel) -> None:
        self._model = model
        points = ALL_LIVE + (PARTLY_LIVE if isinstance(model.stepper, TokenExitStepper) else ())
        with eager_attention(model.backbones), torch.no_grad():
            rows = [self._row(tokens) for tokens, _ in points]
            runs = [self._run_layers(row, live) for row, (_, live) in zip(rows, points, strict=True)]
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
        reading, answering = [cost.reading for cost in costs], [cost.answering for cost in costs]
        return [
            (RowCost.fit([counts[layer] for counts in reading]), RowCost.fit([counts[layer] for counts in answering]))
            for layer in self._numbers
        ]

    def _exit_cost(self, rule: ExitRule, layers: list[_CountedLayer]) -> ExitCost:
        def view_at(layer: int, past: torch.Tensor | None) -> LiveView:
            _, hidden, batch = layers[layer - 1]
            return LiveView(self._model, layer, hidden, batch, past=past)

        return count_exits(rule, self._numbers, view_at, no_history_yet(self._model, rule, 1))

    @property
    def _numbers(self) -> range:
        return range(1, self._model.num_layers + 1)

    def _row(self, tokens: int) -> Encoding:
        ordinary = 1 if self._model.tokenizer.pad_token_id == 0 else 0
        types = [0] * tokens if self._model.stepper.uses_token_types else None
        return Encoding([ordinary] * tokens, types)

    def _run_layers(self, row: Encoding, live: int) -> tuple[int, list[_CountedLayer]]:
        stepper = self._model.stepper
        batch = self._model.collate([row])
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
