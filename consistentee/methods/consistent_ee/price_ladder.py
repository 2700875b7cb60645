"""A ladder of prices: the policies of several prices of a layer in one head, ordered, and the rule of one of them.

The logit of P(exit) at a price is that at the price below plus a positive number, so that a higher price never lets a
row stay longer. A price between two rungs is served by the nearer one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.methods.policy import PolicyInputs, PolicyRule

ALWAYS = 1e6
"""A price at which every row leaves at the first exit; at 0 none leaves."""


@dataclass(frozen=True)
class PriceLadder:
    """Prices of a layer, log-spaced. Raises UserError for fewer than two, and for prices that do not rise above 0."""

    rungs: int
    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if self.rungs < 2:
            raise UserError(f"a ladder has at least 2 rungs, got {self.rungs}")
        if not 0 < self.lowest < self.highest < ALWAYS:
            raise UserError("the lowest price of a ladder must lie above 0 and below the highest one")

    @property
    def prices(self) -> tuple[float, ...]:
        """The prices, rising."""
        low, high = math.log(self.lowest), math.log(self.highest)
        return tuple(math.exp(low + (high - low) * rung / (self.rungs - 1)) for rung in range(self.rungs))

    @property
    def knob_values(self) -> tuple[float, ...]:
        """The prices from the highest one down, between one at which all rows leave at once, and 0."""
        return (ALWAYS, *reversed(self.prices), 0.0)

    def rule(self, reads: PolicyInputs, price: float) -> "LadderRule":
        """Return the rule of the rung nearest to a price."""
        steps = (*self.prices, ALWAYS)
        rung = min(range(len(steps)), key=lambda k: abs(math.log(steps[k] / price))) if price > 0 else 0
        if price == 0 or rung == self.rungs:  # P(exit) is not above 1, and above -1
            return LadderRule(reads, 0, threshold=-1.0 if price else 1.0)
        return LadderRule(reads, rung)


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
