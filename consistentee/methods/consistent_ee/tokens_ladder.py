"""consistentee-tokens-ladder: the prices of a grid of ConsistentEE decoders, learnt in one go by one model.

As ``consistentee-ladder`` is for rows: the policies of all prices of a layer are one head, ordered, and learn together
on the states of the trained exits, a batch under every price. Where ``consistent_steps`` asks for stage 3, an exit is
drawn for each token from the policies' average. ``consistentee-tokens-curve`` is the other way to one model for many
prices: there the price is an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from consistentee.errors import UserError
from consistentee.methods.consistent_ee.price_ladder import ALWAYS, PriceLadder, rung_logits
from consistentee.methods.consistent_ee.tokens import ConsistentEETokens, policy_answers
from consistentee.methods.method import Knob
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.heads import HeadSpec
from consistentee.rules.exit_rule import ExitRule
from consistentee.rules.schedules import check_horizon, text_length
from consistentee.training.decoder.sources import StateBatch


@dataclass(frozen=True)
class ConsistentEETokensLadder(ConsistentEETokens):
    """ConsistentEE on tokens with one policy for each price of a ladder, all learnt together.

    The parameter ``alpha`` is not read.

    Attributes:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``, in nats a layer.
        price_rise: how many times dearer a layer is for the last token of a text than for the first, evenly in log; 1
            prices all alike, as learnt. The knob is the price half-way. Policies learn nothing of it.
        horizon: tokens of a text that the rise is stretched over; None for what the model was trained to write.
    """

    name: ClassVar[str] = "consistentee-tokens-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE for decoders (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, 0.3, 0.03, 0.003, 0.0))

    rungs: int = 8
    lowest_price: float = 0.003
    highest_price: float = 0.3
    price_rise: float = 1.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_horizon(self.horizon)
        if self.price_rise <= 0:
            raise UserError(f"{self.name}: price_rise must be above 0, got {self.price_rise}")
        _ = self.ladder  # what it cannot be made of is said at once

    @property
    def ladder(self) -> PriceLadder:
        """The prices of a layer."""
        return PriceLadder(self.rungs, self.lowest_price, self.highest_price)

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return the prices from the highest one down, between one at which all tokens leave at once, and 0."""
        return self.ladder.knob_values

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit where the policy of the rung nearest to the price ``knob`` says so, or to what it has risen to."""
        self.check_knob(model, knob)
        rise = (1.0,) if self.price_rise == 1 else rising(self.price_rise, text_length(model, self.horizon))
        return self.pruned(self.ladder.rule(self.policy_reads, knob, rise))

    def policy_spec(self) -> HeadSpec:
        return replace(super().policy_spec(), outputs=self.rungs)

    def policies(
        self, model: MultiExitDecoder, batch: StateBatch, confidence: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return every price [tokens], and P(exit) under it [tokens, exits]."""
        says = torch.stack(policy_answers(model, batch, confidence), dim=1)
        leaves = rung_logits(says).sigmoid()  # [tokens, exits - 1, prices]
        leaves = torch.cat([leaves, torch.ones_like(leaves[:, :1])], dim=1)
        every = leaves.new_ones(len(leaves))
        return [(every * price, p) for price, p in zip(self.ladder.prices, leaves.unbind(dim=-1), strict=True)]


def rising(times: float, tokens: int) -> list[float]:
    """Return factors of a price for the tokens of a text, from ``times**-0.5`` to ``times**0.5``, evenly in log."""
    return [times ** (step / max(tokens - 1, 1) - 0.5) for step in range(tokens)]
