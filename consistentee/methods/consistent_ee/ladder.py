"""consistentee-ladder: one model with the policies of several prices of a layer.

In the paper each price alpha needs a model of its own (``consistentee`` with a grid of prices). Here:

1. stage 1 and the cached features are the same for all prices;
2. the policies of all prices learn together on these features: each batch counts for every price;
3. stage 3 runs once: a row's cross-entropy at a layer is weighted by the policies' mean exit probability,
   ``mean_k sum_t q_t^k CE_t``, and every policy has its reward; then all policies are fitted again.

Differences from the paper: one backbone and one set of classifiers serve all prices, so they are consistent with the
policies of the whole ladder. The policies of a layer share their hidden layer and are ordered: a higher price never
makes a row run longer. The threshold on P(exit) is the paper's 0.5. A price between two rungs uses the nearer one.
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
    """ConsistentEE with one policy for each price of a ladder, trained together; one stage 3 for all.

    The parameter ``alpha`` has no effect.

    Attributes:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``. With the defaults rows of SST-2
            exit at 1.2 to 3.4 of 6 layers on average.
    """

    name: ClassVar[str] = "consistentee-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, 0.5, 0.05, 0.005, 0.0))

    rungs: int = 8
    lowest_price: float = 0.005
    highest_price: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.ladder  # raises UserError for an invalid ladder

    @property
    def ladder(self) -> PriceLadder:
        """The prices of a layer."""
        return PriceLadder(self.rungs, self.lowest_price, self.highest_price)

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        return self.ladder.knob_values

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit by the policy of the rung nearest to the price ``knob``."""
        self.check_knob(model, knob)
        return self.ladder.rule(self.policy_reads, knob)

    def policy_spec(self) -> HeadSpec:
        return replace(policy_spec(self.policy_reads, conditioned=False), outputs=self.rungs)

    def policies(self, model: MultiExitModel, outputs: LayerOutputs) -> list[tuple[Tensor, Tensor]]:
        """Compute every price [rows] and P(exit) for it [rows, L]."""
        logits = rung_logits(policy_outputs(model.head(POLICY), outputs.pooled, outputs.logits))
        rows = logits.new_ones(len(logits))
        return [(rows * price, p) for price, p in zip(self.ladder.prices, logits.sigmoid().unbind(dim=-1), strict=True)]
