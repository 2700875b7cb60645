"""A ladder of prices: the policies of several prices of a layer in one head, and the rule of one of them.

The logit of P(exit) at a price is that at the next lower price plus a positive number, so that a higher price never
makes a row run longer. A price between two rungs uses the nearer one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.methods.policy import PolicyInputs, PolicyRule
from consistentee.rules.view import LayerView

ALWAYS = 1e6
"""A price at which every row exits at the first exit; at 0 none exits."""


@dataclass(frozen=True)
class PriceLadder:
    """Log-spaced prices of a layer. Raises UserError for fewer than two, or prices that do not rise from above 0."""

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
        """The prices in increasing order."""
        low, high = math.log(self.lowest), math.log(self.highest)
        return tuple(math.exp(low + (high - low) * rung / (self.rungs - 1)) for rung in range(self.rungs))

    @property
    def knob_values(self) -> tuple[float, ...]:
        """The price at which all rows exit at once, the prices from the highest down, and 0."""
        return (ALWAYS, *reversed(self.prices), 0.0)

    def rule(self, reads: PolicyInputs, price: float, rise: Sequence[float] = (1.0,)) -> "LadderRule":
        """Return the rule of the rung nearest to a price.

        Args:
            reads: see :class:`consistentee.methods.policy.PolicyRule`.
            price: of a layer.
            rise: factors of the price at steps 0, 1, ... of a text, within the ladder; the last one holds for all later
                steps. The prices 0 and ``ALWAYS`` do not rise.
        """
        rung = self._nearest(price, (*self.prices, ALWAYS)) if price > 0 else 0
        if price == 0 or rung == self.rungs:  # P(exit) is not above 1, and above -1
            return LadderRule(reads, (0,), threshold=-1.0 if price else 1.0)
        return LadderRule(reads, [self._nearest(price * factor, self.prices) for factor in rise])

    @staticmethod
    def _nearest(price: float, prices: Sequence[float]) -> int:
        return min(range(len(prices)), key=lambda rung: abs(math.log(prices[rung] / price)))


class LadderRule(PolicyRule):
    """Exit by the policy of a rung.

    Args:
        reads, threshold: see :class:`consistentee.methods.policy.PolicyRule`.
        rungs: index of the price at steps 0, 1, ... of a text, 0 being the lowest; the last one holds for all later
            steps, and in classification.
    """

    def __init__(self, reads: PolicyInputs, rungs: Sequence[int], threshold: float = 0.5) -> None:
        super().__init__(reads, threshold)
        self.rungs = tuple(rungs)

    def logit(self, output: Tensor, view: LayerView) -> Tensor:
        logits = rung_logits(output)
        if len(self.rungs) == 1:
            return logits[..., self.rungs[0]]
        rungs = torch.tensor(self.rungs, device=view.device)[view.steps.clamp_max(len(self.rungs) - 1)]
        return logits.gather(-1, rungs.unsqueeze(-1)).squeeze(-1)


def rung_logits(output: Tensor) -> Tensor:
    """Convert the head's output to logits of P(exit) at increasing prices, which increase: [..., K]."""
    return torch.cat([output[..., :1], functional.softplus(output[..., 1:])], dim=-1).cumsum(dim=-1)
