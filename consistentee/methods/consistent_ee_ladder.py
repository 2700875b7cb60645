"""consistentee-ladder: the prices of a grid of ConsistentEE models, learnt in one go by one model.

The paper's knob is alpha, the price of a layer, and each price is a model of its own: stages 2 and 3 run once for each
(``consistentee``, published so, with a grid of prices). Here one cell holds a ladder of prices:

1. stage 1 and the features that it leaves are the same for all prices, as they are there;
2. the policies of all prices learn together on these features: a batch counts under every price;
3. stage 3 runs once: a row's cross-entropy at a layer weighs as much as the policies, on average over the prices, let
   it leave there, ``mean_k sum_t q_t^k CE_t``, and every policy has its reward; then all policies are fitted again.

What differs from the paper, then: one backbone and one set of classifiers serve all prices, which are consistent with
the policies of the whole ladder and not with that of one price; for eight prices, stage 3 costs an eighth. And the
policies of one layer share their hidden layer, and are ordered: the logit of P(exit) at a price is that at the price
below plus a positive number, so that a higher price never lets a row stay longer. The threshold on P(exit) is the
paper's 0.5, and a price between two rungs is served by the nearer one. ``consistentee-curve`` is the other way to one
model for many prices: there the price is an input, and the reward another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.methods.consistent_ee import ConsistentEE
from consistentee.methods.method import Knob
from consistentee.methods.policy import POLICY, PolicyInputs, PolicyRule, policy_outputs, policy_spec
from consistentee.models.encoder import LayerOutputs, MultiExitModel
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule

_ALWAYS = 1e6
"""A price at which every row leaves at layer 1; at 0 none leaves."""


@dataclass(frozen=True)
class ConsistentEELadder(ConsistentEE):
    """ConsistentEE with one policy for each price of a ladder, all learnt together; one stage 3 for the mixture.

    The parameter ``alpha`` is not read.

    Attributes:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``: those of the paper's code and a
            little beyond.With them rows of SST-2 leave at 1.2 to 3.4 of 6 layers on average.
    """

    name: ClassVar[str] = "consistentee-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[Knob] = Knob("alpha", (_ALWAYS, 0.5, 0.05, 0.005, 0.0))

    rungs: int = 8
    lowest_price: float = 0.005
    highest_price: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rungs < 2:
            raise UserError(f"{self.name}: a ladder has at least 2 rungs, got {self.rungs}")
        if not 0 < self.lowest_price < self.highest_price < _ALWAYS:
            raise UserError(f"{self.name}: lowest_price must lie above 0 and below highest_price")

    @property
    def prices(self) -> tuple[float, ...]:
        """The prices of a layer, rising."""
        low, high = math.log(self.lowest_price), math.log(self.highest_price)
        return tuple(math.exp(low + (high - low) * rung / (self.rungs - 1)) for rung in range(self.rungs))

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """Return the prices from the highest one down, between one at which all rows leave at once, and 0."""
        return (_ALWAYS, *reversed(self.prices), 0.0)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the policy of the rung nearest to the price ``knob`` says so."""
        self.check_knob(model, knob)
        steps = (*self.prices, _ALWAYS)
        rung = min(range(len(steps)), key=lambda k: abs(math.log(steps[k] / knob))) if knob > 0 else 0
        if knob == 0 or rung == self.rungs:  # P(exit) is not above 1, and above -1
            return LadderRule(self.policy_reads, 0, threshold=-1.0 if knob else 1.0)
        return LadderRule(self.policy_reads, rung)

    def policy_spec(self) -> HeadSpec:
        return replace(policy_spec(self.policy_reads, conditioned=False), outputs=self.rungs)

    def policies(self, model: MultiExitModel, outputs: LayerOutputs) -> list[tuple[Tensor, Tensor]]:
        """Return every price [rows], and P(exit) under it [rows, L]."""
        logits = rung_logits(policy_outputs(model.head(POLICY), outputs.pooled, outputs.logits))
        rows = logits.new_ones(len(logits))
        return [(rows * price, p) for price, p in zip(self.prices, logits.sigmoid().unbind(dim=-1), strict=True)]


class LadderRule(PolicyRule):
    """Exit at the first layer where the policy of one rung says so.

    Args:
        reads, threshold: see :class:`consistentee.methods.policy.PolicyRule`.
        rung: number of the price, 0 being the lowest one.
    """

    def __init__(self, reads: PolicyInputs, rung: int, threshold: float = 0.5) -> None:
        super().__init__(reads, threshold)
        self.rung = rung

    def logit(self, output: Tensor) -> Tensor:
        return rung_logits(output)[..., self.rung]


def rung_logits(output: Tensor) -> Tensor:
    """Turn what the head says into the logits of P(exit) at rising prices, which rise: [..., K]."""
    return torch.cat([output[..., :1], functional.softplus(output[..., 1:])], dim=-1).cumsum(dim=-1)
