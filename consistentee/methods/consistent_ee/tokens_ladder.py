"""consistentee-tokens-ladder: one decoder with the policies of several prices of a layer.

As ``consistentee-ladder`` for rows: the policies of all prices are one ordered head and learn together on the states of
the trained exits, each batch for every price. In stage 3 (``consistent_steps``) an exit is drawn for each token from
the policies' average.
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
    """ConsistentEE on tokens with one policy for each price of a ladder, trained together.

    The parameter ``alpha`` has no effect.

    Attributes:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``, in nats a layer.
        price_rise: price of a layer at the last token of a text divided by that at the first, log-linear in between;
            the knob is the price half-way. It does not affect training.
        horizon: tokens of the rise; None for the length that the model was trained with.
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
        _ = self.ladder  # raises UserError for an invalid ladder

    @property
    def ladder(self) -> PriceLadder:
        """The prices of a layer."""
        return PriceLadder(self.rungs, self.lowest_price, self.highest_price)

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        return self.ladder.knob_values

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit by the policy of the rung nearest to the price ``knob``, which may rise along the text."""
        self.check_knob(model, knob)
        rise = (1.0,) if self.price_rise == 1 else rising(self.price_rise, text_length(model, self.horizon))
        return self.pruned(self.ladder.rule(self.policy_reads, knob, rise))

    def policy_spec(self) -> HeadSpec:
        return replace(super().policy_spec(), outputs=self.rungs)

    def policies(
        self, model: MultiExitDecoder, batch: StateBatch, confidence: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Compute every price [tokens] and P(exit) for it [tokens, exits]."""
        outputs = torch.stack(policy_answers(model, batch, confidence), dim=1)
        exits = rung_logits(outputs).sigmoid()  # [tokens, exits - 1, prices]
        exits = torch.cat([exits, torch.ones_like(exits[:, :1])], dim=1)
        ones = exits.new_ones(len(exits))
        return [(ones * price, p) for price, p in zip(self.ladder.prices, exits.unbind(dim=-1), strict=True)]


def rising(times: float, tokens: int) -> list[float]:
    """Return log-linear factors of a price for the tokens of a text, from ``times**-0.5`` to ``times**0.5``."""
    return [times ** (step / max(tokens - 1, 1) - 0.5) for step in range(tokens)]
