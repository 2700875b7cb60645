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

from dataclasses import dataclass
from typing import ClassVar

from consistentee import Knob
from consistentee.methods.consistent_ee.instances import ConsistentEE
from consistentee.methods.policy import ALWAYS, LadderParameters


@dataclass(frozen=True)
class ConsistentEELadder(LadderParameters, ConsistentEE):
    """ConsistentEE with one policy for each price of a ladder, trained together; one stage 3 for all.

    The parameter ``alpha`` has no effect.
    """

    name: ClassVar[str] = "consistentee-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, 0.5, 0.05, 0.005, 0.0))
