"""The exit policy of ConsistentEE: its network, the prices of a layer that it is trained for, and its exit rule.

The paper's policy is one small network for each layer that reads the pooled vector (section 3.1). Two additions, which
can be switched off, help on small training sets: the policy also reads the confidence of the classifier (top
probability, margin, entropy, agreement with the layer before), and it starts from low exit probabilities.

In the paper every price of a layer needs a model of its own, :class:`OnePrice`. Two extensions give the whole curve
with one model; in both, a higher price never makes a row run longer:

* :class:`DrawnPrices`: the policy reads the price alpha, ``p = sigmoid(a(s) + softplus(b(s)) * log alpha)``;
* :class:`PriceLadder`: the policies of some prices are one head. The logit of P(exit) at a price is that at the next
  lower price plus a positive number. A price between two rungs uses the nearer one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.methods.reward import Estimator, exact_policy_loss, reinforce_policy_loss
from consistentee.models.heads import ExitHeads, HeadSpec
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView
from consistentee.signals import NUM_CONFIDENCE_FEATURES, confidence_features

POLICY = "policy"
INITIAL_BIAS = -1.5

PolicyInputs = Literal["state", "state+confidence", "confidence"]
"""The inputs of a policy: the pooled vector, the confidence of the classifier, or both."""

ALWAYS = 1e6
"""A price at which every row exits at the first exit; at 0 none exits."""

Policies = list[tuple[Tensor, Tensor]]
"""For every price: the price of a layer [rows], and P(exit) [rows, exits]."""


class PolicyRule(ExitRule):
    """Exit at the first layer with P(exit) > threshold.

    Args:
        reads: the inputs of the policy.
        logit: (outputs of the policy's head, view) -> logit of P(exit), [rows].
        threshold: on P(exit).
    """

    def __init__(
        self, reads: PolicyInputs, logit: Callable[[Tensor, LayerView], Tensor], threshold: float = 0.5
    ) -> None:
        self.reads = reads
        self.logit = logit
        self.threshold = threshold

    def start(self, rows: int, num_layers: int) -> State:
        return {"previous": torch.full((rows,), -1)} if self.reads != "state" else {}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        extra = None
        if self.reads != "state":
            answers = view.predictions
            extra = confidence_features(view.probs, answers, state["previous"])
            state["previous"] = answers
        return self.logit(view.head(POLICY, extra), view).sigmoid() > self.threshold


class Prices(ABC):
    """The prices of a layer that a policy is trained for.

    Attributes:
        outputs: number of outputs of the policy's head.
    """

    outputs: int

    @abstractmethod
    def policies(self, outputs: Tensor) -> Policies:
        """Compute the policies of all prices of a batch from the head's outputs: [rows, exits] or [..., outputs]."""

    @abstractmethod
    def rule(self, reads: PolicyInputs, knob: float) -> PolicyRule:
        """Return the exit rule at a value of the knob."""


@dataclass(frozen=True)
class OnePrice(Prices):
    """One price; the knob is the threshold on P(exit). At 0 every row exits, even if P is rounded to 0."""

    alpha: float
    outputs = 1

    def policies(self, outputs: Tensor) -> Policies:
        return [(torch.full((len(outputs),), self.alpha).to(outputs.device), outputs.sigmoid())]

    def rule(self, reads: PolicyInputs, knob: float) -> PolicyRule:
        return PolicyRule(reads, lambda output, view: output, threshold=knob if knob > 0 else -math.inf)


@dataclass(frozen=True)
class DrawnPrices(Prices):
    """A log-uniform price for each row; the knob is the price. Raises UserError for an invalid range."""

    lowest: float
    highest: float
    outputs = 2

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest:
            raise UserError("the lowest alpha must lie above 0 and below the highest one")

    def policies(self, outputs: Tensor) -> Policies:
        low, high = torch.tensor([self.lowest, self.highest]).log()
        alpha = (low + (high - low) * torch.rand(len(outputs))).exp().to(outputs.device)
        return [(alpha, policy_logit(outputs, alpha.log().unsqueeze(1)).sigmoid())]

    def rule(self, reads: PolicyInputs, knob: float) -> PolicyRule:
        log_alpha = math.inf if knob >= ALWAYS else math.log(knob) if knob > 0 else -math.inf
        return PolicyRule(reads, lambda output, view: policy_logit(output, log_alpha))


@dataclass(frozen=True)
class PriceLadder(Prices):
    """Log-spaced prices; the knob is the price. Raises UserError for fewer than two, or an invalid range."""

    rungs: int
    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if self.rungs < 2:
            raise UserError(f"a ladder has at least 2 rungs, got {self.rungs}")
        if not 0 < self.lowest < self.highest < ALWAYS:
            raise UserError("the lowest price of a ladder must lie above 0 and below the highest one")

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.rungs

    @property
    def prices(self) -> tuple[float, ...]:
        """The prices in increasing order."""
        low, high = math.log(self.lowest), math.log(self.highest)
        return tuple(math.exp(low + (high - low) * rung / (self.rungs - 1)) for rung in range(self.rungs))

    @property
    def knob_values(self) -> tuple[float, ...]:
        """The price at which all rows exit at once, the prices from the highest down, and 0."""
        return (ALWAYS, *reversed(self.prices), 0.0)

    def policies(self, outputs: Tensor) -> Policies:
        probabilities, rows = rung_logits(outputs).sigmoid(), outputs.new_ones(len(outputs))
        return [(rows * price, p) for price, p in zip(self.prices, probabilities.unbind(dim=-1), strict=True)]

    def rule(self, reads: PolicyInputs, knob: float, rise: Sequence[float] = (1.0,)) -> PolicyRule:
        """Return the rule of the rung nearest to a price, ``knob``.

        ``rise``: factors of the price at steps 0, 1, ... of a text, within the ladder; the last one holds for all later
        steps. The prices 0 and ``ALWAYS`` do not rise.
        """
        rung = self._nearest(knob, (*self.prices, ALWAYS)) if knob > 0 else 0
        if knob == 0 or rung == self.rungs:  # P(exit) is not above 1, and above -1
            return PolicyRule(reads, partial(logit_of_rungs, [0]), threshold=-1.0 if knob else 1.0)
        rungs = [self._nearest(knob * factor, self.prices) for factor in rise]
        return PolicyRule(reads, partial(logit_of_rungs, rungs))

    @staticmethod
    def _nearest(price: float, prices: Sequence[float]) -> int:
        return min(range(len(prices)), key=lambda rung: abs(math.log(prices[rung] / price)))


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of ConsistentEE that rows and tokens share.

    Attributes:
        alpha: the price of a layer, in nats (of errors with ``reward_loss="error"``). The paper's code used 0.005 to
            0.2.
        reward: "hardness" makes layers cheap for rows that are memorized late; "vanilla" prices all alike.
        reward_loss: the cost of an answer: "cross-entropy" is the paper's; "error" is 1 for a wrong answer, so that
            layers which only make a right answer more certain do not pay.
        estimator: "exact" uses the expected reward in closed form; "reinforce" samples ``rollouts`` exits for each row.
        rollouts: K of REINFORCE.
        policy_reads: "state" is the paper's; "state+confidence" adds the exit's confidence, in a decoder at the cost of
            the LM head at every exit; "confidence" reads only that.
        initial_bias: of the policy's output; P(exit) starts at its sigmoid.
    """

    alpha: NonNegativeFloat = 0.05
    reward: Literal["hardness", "vanilla"] = "hardness"
    reward_loss: Literal["cross-entropy", "error"] = "cross-entropy"
    estimator: Estimator = "exact"
    rollouts: Annotated[int, Field(ge=2)] = 8
    policy_reads: PolicyInputs = "state+confidence"
    initial_bias: float = INITIAL_BIAS

    @property
    def prices(self) -> Prices:
        """The prices of a layer that the policy is trained for."""
        return OnePrice(self.alpha)

    def policy_loss(self, exit_probabilities: Tensor, reward: Tensor) -> Tensor:
        """Compute L_pi with the estimator from p_t and R_t [rows, exits]."""
        if self.estimator == "exact":
            return exact_policy_loss(exit_probabilities, reward)
        return reinforce_policy_loss(exit_probabilities, reward, self.rollouts)


@dataclass(frozen=True)
class LadderParameters:
    """Parameters of one policy for each price of a ladder; before :class:`PolicyParameters` among the bases.

    Attributes:
        rungs: number of prices, log-spaced from ``lowest_price`` to ``highest_price``.
    """

    rungs: int = 8
    lowest_price: float = 0.005
    highest_price: float = 0.5

    @property
    def prices(self) -> PriceLadder:
        """The prices of the ladder."""
        return PriceLadder(self.rungs, self.lowest_price, self.highest_price)

    def knob_values(self, model: object) -> Sequence[float]:
        return self.prices.knob_values


def policy_logit(output: Tensor, log_alpha: float | Tensor) -> Tensor:
    """Convert a head's output [..., 2] and the log of a price to the logit of P(exit): [...]."""
    base, slope = output.unbind(dim=-1)
    # A weight that underflows to 0 would turn a price of 0 or infinity into NaN.
    return base + functional.softplus(slope).clamp_min(torch.finfo(slope.dtype).tiny) * log_alpha


def rung_logits(output: Tensor) -> Tensor:
    """Convert the head's output to logits of P(exit) at increasing prices, which increase: [..., K]."""
    return torch.cat([output[..., :1], functional.softplus(output[..., 1:])], dim=-1).cumsum(dim=-1)


def logit_of_rungs(rungs: Sequence[int], output: Tensor, view: LayerView) -> Tensor:
    """Convert the head's output [rows, K] to the logit of P(exit) at the price of each row's step: [rows].

    ``rungs``: index of the price at steps 0, 1, ... of a text, 0 being the lowest; the last one holds for all later
    steps, and in classification.
    """
    logits = rung_logits(output)
    if len(rungs) == 1:
        return logits[..., rungs[0]]
    at_step = torch.tensor(rungs, device=view.device)[view.steps.clamp_max(len(rungs) - 1)]
    return logits.gather(-1, at_step.unsqueeze(-1)).squeeze(-1)


def policy_spec(reads: PolicyInputs, outputs: int, initial_bias: float) -> HeadSpec:
    """Return the head of a policy: Linear(H, 32), GELU, Linear(32, outputs)."""
    return HeadSpec(
        outputs=outputs,
        hidden=32,
        extra_inputs=0 if reads == "state" else NUM_CONFIDENCE_FEATURES,
        reads_pooled=reads != "confidence",
        initial_bias=initial_bias,
    )


def policy_outputs(policy: ExitHeads, pooled: Tensor, logits: Tensor) -> Tensor:
    """Compute the outputs of a policy at every layer in training: float [rows, L], or [rows, L, outputs].

    Its inputs, [rows, L, width] and [rows, L, classes], are detached, so it does not train the backbone.
    """
    extra = None
    if policy.spec.extra_inputs:
        probs = logits.detach().softmax(dim=-1)
        answers = probs.argmax(dim=-1)
        extra = confidence_features(probs, answers, functional.pad(answers[:, :-1], (1, 0), value=-1))
    return policy.at_layers(range(1, policy.num_layers + 1), pooled.detach(), extra)
