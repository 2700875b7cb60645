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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from consistentee.methods.consistent_ee.instances import ConsistentEE
from consistentee.methods.consistent_ee.price_ladder import ALWAYS, PriceLadder, rung_logits
from consistentee.methods.method import Knob
from consistentee.methods.policy import POLICY, policy_outputs, policy_spec
from consistentee.models.encoder.multi_exit_model import LayerOutputs, MultiExitModel
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule


@dataclass(frozen=True)
class ConsistentEELadder(ConsistentEE):
    """ConsistentEE with one policy for each price of a ladder, all learnt together; one stage 3 for the mixture.

    The parameter ``alpha`` is not read.

    Attributes:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``: those of the paper's code and a
            little beyond. With them rows of SST-2 leave at 1.2 to 3.4 of 6 layers on average.
    """

    name: ClassVar[str] = "consistentee-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, 0.5, 0.05, 0.005, 0.0))

    rungs: int = 8
    lowest_price: float = 0.005
    highest_price: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.ladder  # what it cannot be made of is said at once

    @property
    def ladder(self) -> PriceLadder:
        """The prices of a layer."""
        return PriceLadder(self.rungs, self.lowest_price, self.highest_price)

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        """Return the prices from the highest one down, between one at which all rows leave at once, and 0."""
        return self.ladder.knob_values

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the policy of the rung nearest to the price ``knob`` says so."""
        self.check_knob(model, knob)
        return self.ladder.rule(self.policy_reads, knob)

    def policy_spec(self) -> HeadSpec:
        return replace(policy_spec(self.policy_reads, conditioned=False), outputs=self.rungs)

    def policies(self, model: MultiExitModel, outputs: LayerOutputs) -> list[tuple[Tensor, Tensor]]:
        """Return every price [rows], and P(exit) under it [rows, L]."""
        logits = rung_logits(policy_outputs(model.head(POLICY), outputs.pooled, outputs.logits))
        rows = logits.new_ones(len(logits))
        return [(rows * price, p) for price, p in zip(self.ladder.prices, logits.sigmoid().unbind(dim=-1), strict=True)]
