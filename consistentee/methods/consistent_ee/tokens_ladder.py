"""consistentee-tokens-ladder: one decoder with the policies of several prices of a layer.

As ``consistentee-ladder`` for rows: the policies of all prices are one ordered head and learn together on the states of
the trained exits, each batch for every price. In stage 3 (``consistent_steps``) an exit is drawn for each token from
the policies' average.
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

from consistentee import ExitRule, Knob, MultiExitDecoder
from consistentee.methods.consistent_ee.tokens import ConsistentEETokens
from consistentee.methods.policy import ALWAYS, LadderParameters


@dataclass(frozen=True)
class ConsistentEETokensLadder(LadderParameters, ConsistentEETokens):
    """ConsistentEE on tokens with one policy for each price of a ladder, trained together.

    The parameter ``alpha`` has no effect.

    Attributes besides those of ``consistentee-ladder``, with prices in nats a layer:
        price_rise: price of a layer at the last token of a text divided by that at the first, log-linear in between;
            the knob is the price half-way. It does not affect training.
        horizon: tokens of the rise; None for the length that the model was trained with.
    """

    name: ClassVar[str] = "consistentee-tokens-ladder"
    paper: ClassVar[str] = "ours: ConsistentEE for decoders (AAAI 2024) with the policies of all prices in one model"
    knob: ClassVar[Knob] = Knob("alpha", (ALWAYS, 0.3, 0.03, 0.003, 0.0))

    lowest_price: float = 0.003
    highest_price: float = 0.3
    price_rise: PositiveFloat = 1.0
    horizon: PositiveInt | None = None

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit by the policy of the rung nearest to the price ``knob``, which may rise along the text."""
        rise = (1.0,) if self.price_rise == 1 else rising(self.price_rise, self.horizon or model.text_length)
        return self.pruned(self.prices.rule(self.policy_reads, knob, rise))


def rising(times: float, tokens: int) -> list[float]:
    """Compute log-linear factors of a price for the tokens of a text, from ``times**-0.5`` to ``times**0.5``."""
    return [times ** (step / max(tokens - 1, 1) - 0.5) for step in range(tokens)]
