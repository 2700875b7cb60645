"""Floating point operations of early-exit classification, row by row: counted once a layer, times the calls.

What a layer costs is a polynomial of the row's tokens, ``a + b*n + c*n^2``: attention is quadratic, all else linear or
constant. Where tokens exit by themselves, a layer costs what its live tokens cost, and the keys and values of all.
Padding costs time, but is no operation of a row, and is not counted.
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
"""Row lengths and live tokens that are counted where tokens exit: one determines what is left, the others check it."""


@dataclass(frozen=True)
class TokenPolynomial:
    """Operations of a row with n tokens: ``constant + linear * n + quadratic * n^2``, exact."""

    constant: int
    linear: int
    quadratic: int

    @classmethod
    def fit(cls, counted: list[int]) -> "TokenPolynomial":
        """Return the polynomial through the counts at :data:`TOKEN_COUNTS`.

        Raises ValueError if the last count does not lie on it.
        """
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
        """Return the operations of rows with these numbers of tokens."""
        n = np.asarray(tokens, dtype=np.int64)
        return self.constant + self.linear * n + self.quadratic * n * n


@dataclass(frozen=True)
class LayerCost:
    """Operations of a layer on a row with n tokens, m of them live; exact.

    Attributes:
        full: of a row whose tokens are all live.
        attended: what a token costs that is only attended to, a part of ``full.linear``: its key and its value.
    """

    full: TokenPolynomial
    attended: int = 0

    @classmethod
    def fit(cls, full: TokenPolynomial, counted: list[int]) -> "LayerCost":
        """Return the cost that fits the counts at :data:`PARTLY_LIVE`. Raises ValueError if one does not lie on it."""
        tokens, live = np.transpose(PARTLY_LIVE)
        without = cls(full)(tokens, live)
        cost = cls(full, round((counted[0] - without[0]) / (tokens[0] - live[0])))
        if cost(tokens, live).tolist() != counted:
            raise ValueError(f"operations {counted} at {PARTLY_LIVE} tokens and live ones do not fit a layer's parts")
        return cost

    def __call__(self, tokens: ArrayLike, live: ArrayLike | None = None) -> NDArray[np.int64]:
        """Return the operations of rows with these numbers of tokens, and of live ones (None: all); 0 if none is."""
        n = np.asarray(tokens, dtype=np.int64)
        m = n if live is None else np.asarray(live, dtype=np.int64)
        whole = self.full.constant + self.full.linear * m + self.full.quadratic * n * m
        return np.where(m > 0, whole + self.attended * (n - m), 0)


@dataclass(frozen=True)
class RuleCost:
    """What a rule reads at each layer and what is kept of it for later ones, and what the answer costs beyond that."""

    reading: list[TokenPolynomial]
    answering: list[TokenPolynomial]


@dataclass(frozen=True)
class _CountedLayer:
    """One layer of one counted row: the operations, and the hidden states that its view starts from."""

    operations: int
    hidden: torch.Tensor
    padding_mask: torch.Tensor


class FlopModel:
    """Counts the operations of one model; the layers are counted once, every rule when it is first asked for."""

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
        """Return the operations of every row in the stock model, which asks no rule and has no companion."""
        tokens, companion = np.asarray(lengths, dtype=np.int64), companion_layers(self._model)
        total = self.row_flops(tokens, np.full(tokens.shape, self._model.num_layers), NeverExit())
        if not companion:
            return total
        # What embeds the tokens again for the full backbone is counted in the first of its layers.
        return total - self.embedding(tokens) - sum(layer(tokens) for layer in self.layers[:companion])

    @torch.no_grad()
    def rule_cost(self, rule: ExitRule) -> RuleCost:
        """Count what a rule reads: it is asked at every layer of a row that never leaves."""
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
        """Run every layer on the first ``live`` tokens of a row, whatever the schedule of a model whose tokens exit."""
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
    """Turn runs of all layers into the operations of each layer in all runs."""
    return [[counted.operations for counted in layer] for layer in zip(*runs, strict=True)]
