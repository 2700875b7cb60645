"""Count floating point operations of early-exit classification, row by row: once for each layer, times the calls.

The cost of a layer is a polynomial of the row's tokens, ``a + b*n + c*n^2``. If tokens exit by themselves, a layer
costs its live tokens, and keys and values of all. Padding is not counted.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from benchmarks.measure.operations import ExitCost, count_exits, count_operations, eager_attention
from consistentee.backbones.token_exits import TokenContext, TokenExitStepper
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import LiveView, no_history_yet
from consistentee.models.encoder.cascade import companion_layers
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit

TOKEN_COUNTS = (2, 4, 8, 12)
"""Row lengths that are counted: three determine the polynomial, the last one checks it."""

PARTLY_LIVE = ((8, 3), (12, 5), (12, 1))
"""Row lengths and live tokens that are counted if tokens exit: one determines the rest, the others check it."""


@dataclass(frozen=True)
class TokenPolynomial:
    """Operations of a row with n tokens: ``constant + linear * n + quadratic * n^2``, exact."""

    constant: int
    linear: int
    quadratic: int

    @classmethod
    def fit(cls, counted: list[int]) -> "TokenPolynomial":
        """Fit a polynomial to the counts at :data:`TOKEN_COUNTS`. Raises ValueError if the last is not on it."""
        powers = np.vander(TOKEN_COUNTS[:3], 3, increasing=True).astype(float)
        constant, linear, quadratic = (round(value) for value in np.linalg.solve(powers, counted[:3]))
        polynomial = cls(constant, linear, quadratic)
        if polynomial(TOKEN_COUNTS).tolist() != counted:
            raise ValueError(
                f"operations {counted} at {TOKEN_COUNTS} tokens are not quadratic in the tokens; "
                "a layer, and what a rule reads of it, must cost every row of the same length the same"
            )
        return polynomial

    def __call__(self, tokens: ArrayLike) -> NDArray[np.int64]:
        n = np.asarray(tokens, dtype=np.int64)
        return self.constant + self.linear * n + self.quadratic * n * n


@dataclass(frozen=True)
class LayerCost:
    """Operations of a layer on a row with n tokens, m of them live; exact.

    Attributes:
        full: of a row whose tokens are all live.
        attended: cost of a token that is only attended to (key and value), a part of ``full.linear``.
    """

    full: TokenPolynomial
    attended: int = 0

    @classmethod
    def fit(cls, full: TokenPolynomial, counted: list[int]) -> "LayerCost":
        """Fit the cost to the counts at :data:`PARTLY_LIVE`. Raises ValueError if one does not fit."""
        tokens, live = np.transpose(PARTLY_LIVE)
        without = cls(full)(tokens, live)
        cost = cls(full, round((counted[0] - without[0]) / (tokens[0] - live[0])))
        if cost(tokens, live).tolist() != counted:
            raise ValueError(f"operations {counted} at {PARTLY_LIVE} tokens and live ones do not fit a layer's parts")
        return cost

    def __call__(self, tokens: ArrayLike, live: ArrayLike | None = None) -> NDArray[np.int64]:
        """Count rows with these numbers of tokens and of live tokens (None: all); 0 without live tokens."""
        n = np.asarray(tokens, dtype=np.int64)
        m = n if live is None else np.asarray(live, dtype=np.int64)
        whole = self.full.constant + self.full.linear * m + self.full.quadratic * n * m
        return np.where(m > 0, whole + self.attended * (n - m), 0)


@dataclass(frozen=True)
class RuleCost:
    """Cost of a rule's reads at each layer, including what is kept for later layers, and of the answer."""

    reading: list[TokenPolynomial]
    answering: list[TokenPolynomial]


@dataclass(frozen=True)
class _CountedLayer:
    """One layer of one counted row: its operations and hidden states."""

    operations: int
    hidden: torch.Tensor
    padding_mask: torch.Tensor


class FlopModel:
    """Count the operations of one model: its layers once, each rule when needed."""

    def __init__(self, model: MultiExitModel) -> None:
        self._model = model
        self._rows = [self._row(tokens) for tokens in TOKEN_COUNTS]
        with eager_attention(model.backbones), torch.no_grad():
            runs = [self._run_layers(row, live=len(row)) for row in self._rows]
            lets_tokens_exit = isinstance(model.stepper, TokenExitStepper)
            points = PARTLY_LIVE if lets_tokens_exit else ()
            partly_live = [self._run_layers(self._row(tokens), live)[1] for tokens, live in points]
        self._layers = [layers for _, layers in runs]
        self.embedding = TokenPolynomial.fit([operations for operations, _ in runs])
        full = [TokenPolynomial.fit(counted) for counted in _by_layer(self._layers)]
        if lets_tokens_exit:
            self.layers = [LayerCost.fit(*layer) for layer in zip(full, _by_layer(partly_live), strict=True)]
        else:
            self.layers = [LayerCost(polynomial) for polynomial in full]

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
        cost = self.rule_cost(NeverExit() if rule is None else rule)
        live = None if live_tokens is None else np.asarray(live_tokens)
        total = self.embedding(tokens)
        for index in range(self._model.num_layers):
            ran, left = layers > index, layers == index + 1
            layer = self.layers[index](tokens, None if live is None else live[:, index])
            total = total + np.where(ran, layer + cost.reading[index](tokens), 0)
            total = total + np.where(left, cost.answering[index](tokens), 0)
        return total

    def full_flops(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Count the operations of every row in the stock model, without rule and companion."""
        tokens, companion = np.asarray(lengths, dtype=np.int64), companion_layers(self._model)
        total = self.row_flops(tokens, np.full(tokens.shape, self._model.num_layers), NeverExit())
        if not companion:
            return total
        # The second embedding, for the full backbone, is counted in its first layer.
        return total - self.embedding(tokens) - sum(layer(tokens) for layer in self.layers[:companion])

    @torch.no_grad()
    def rule_cost(self, rule: ExitRule) -> RuleCost:
        """Count the reads of a rule at every layer."""
        counts = [self._exit_cost(rule, row, layers) for row, layers in zip(self._rows, self._layers, strict=True)]
        numbers = range(1, self._model.num_layers + 1)
        return RuleCost(
            [TokenPolynomial.fit([cost.reading[layer] for cost in counts]) for layer in numbers],
            [TokenPolynomial.fit([cost.answering[layer] for cost in counts]) for layer in numbers],
        )

    def _exit_cost(self, rule: ExitRule, row: Encoding, layers: list[_CountedLayer]) -> ExitCost:
        def view_at(layer: int, past: torch.Tensor | None) -> LiveView:
            counted = layers[layer - 1]
            return LiveView(self._model, layer, counted.hidden, counted.padding_mask, [row], past=past)

        return count_exits(rule, range(1, len(layers) + 1), view_at, no_history_yet(self._model, rule, 1))

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
        for layer in range(1, self._model.num_layers + 1):
            operations, hidden = count_operations(partial(stepper.step, layer, hidden, context))
            layers.append(_CountedLayer(operations, hidden, context.padding_mask))
        return embedding, layers


def _by_layer(runs: list[list[_CountedLayer]]) -> list[list[int]]:
    return [[counted.operations for counted in layer] for layer in zip(*runs, strict=True)]
