"""The exit policy of ConsistentEE: what it reads, how it answers, and the rule that follows it.

The paper's policy is one small network a layer that reads the pooled vector alone (section 3.1). Two additions, each
of which can be switched off, were found necessary on small training sets: the policy also reads what the classifier
says (top probability, margin, entropy, agreement with the layer before), and it starts from low exit probabilities.

A policy may be *conditioned* on alpha, the price of a layer: ``p = sigmoid(a(s) + softplus(b(s)) * log alpha)``, so
that a higher price never makes a row stay longer, and one policy gives the whole accuracy-speed curve.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.models.heads import ExitHeads, HeadSpec
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView

POLICY = "policy"
INITIAL_BIAS = -1.5

PolicyInputs = Literal["state", "state+confidence", "confidence"]
"""What a policy reads: the pooled vector alone, the confidence of the classifier too, or that alone."""

NUM_CONFIDENCE_FEATURES = 4


def policy_spec(reads: PolicyInputs, conditioned: bool) -> HeadSpec:
    """Return the head of a policy: Linear(H, 32), GELU, Linear(32, 1), or 2 outputs where it is conditioned."""
    return HeadSpec(
        outputs=2 if conditioned else 1,
        hidden=32,
        extra_inputs=0 if reads == "state" else NUM_CONFIDENCE_FEATURES,
        reads_pooled=reads != "confidence",
        initial_bias=INITIAL_BIAS,
    )


def confidence_features(probs: Tensor, prediction: Tensor, previous: Tensor | None) -> Tensor:
    """Return top probability, margin, normalised entropy and agreement with the layer before (0 at layer 1): [rows, 4].

    Args:
        probs: [rows, classes], of candidates alone where the vocabulary is pruned.
        prediction: the class that the layer names, of all classes: [rows].
        previous: the one that the layer before named, [rows]; None at layer 1.
    """
    first, second = probs.topk(2, dim=-1).values.unbind(dim=-1)
    entropy = torch.special.entr(probs).sum(dim=-1) / math.log(probs.shape[-1])
    agrees = torch.zeros_like(first) if previous is None else (prediction == previous).to(first.dtype)
    return torch.stack([first, first - second, entropy, agrees], dim=-1)


def policy_logit(output: Tensor, log_alpha: float | Tensor | None) -> Tensor:
    """Turn a head's output into the logit of P(exit): [...].

    Args:
        output: [...], or [..., 2] where the policy is conditioned.
        log_alpha: log of the price of a layer, a number or [...]; only where the policy is conditioned.
    """
    if log_alpha is None:
        return output
    base, slope = output.unbind(dim=-1)
    # A weight that underflows to zero would make a price of 0 or infinity NaN, and rows would never leave.
    return base + functional.softplus(slope).clamp_min(torch.finfo(slope.dtype).tiny) * log_alpha


def drawn_prices(lowest: float, highest: float, count: int) -> Tensor:
    """Draw prices of a layer, log-uniformly, for a conditioned policy to learn under: float [count]."""
    low, high = torch.tensor([lowest, highest]).log()
    return (low + (high - low) * torch.rand(count)).exp()


def policy_outputs(policy: ExitHeads, pooled: Tensor, logits: Tensor) -> Tensor:
    """Return what a policy says at every layer, as training needs it: float [rows, L], or [rows, L, outputs].

    The policy reads detached inputs: its gradient shapes the policy, not the features.

    Args:
        policy: the head.
        pooled: [rows, L, width].
        logits: [rows, L, classes].
    """
    pooled, probs = pooled.detach(), logits.detach().softmax(dim=-1)
    answers = probs.argmax(dim=-1)
    columns = []
    for index in range(pooled.shape[1]):
        previous = answers[:, index - 1] if index else None
        extra = confidence_features(probs[:, index], answers[:, index], previous) if policy.spec.extra_inputs else None
        columns.append(policy(index + 1, pooled[:, index], extra))
    return torch.stack(columns, dim=1)


def exit_probabilities(policy: ExitHeads, pooled: Tensor, logits: Tensor, log_alpha: Tensor | None) -> Tensor:
    """Return P(exit) at every layer: float [rows, L]; see :func:`policy_outputs`.

    ``log_alpha`` is [rows], or None where the policy is not conditioned.
    """
    outputs = policy_outputs(policy, pooled, logits)
    return policy_logit(outputs, None if log_alpha is None else log_alpha.unsqueeze(1)).sigmoid()


class PolicyRule(ExitRule):
    """Exit at the first layer where the policy says so: P(exit) > threshold.

    Args:
        reads: what the policy was trained on.
        threshold: on P(exit).
        alpha: the price of a layer, where the policy is conditioned on it; 0 never exits, infinity always.
    """

    def __init__(self, reads: PolicyInputs, threshold: float = 0.5, alpha: float | None = None) -> None:
        self.reads = reads
        self.threshold = threshold
        self.log_alpha = None if alpha is None else (math.log(alpha) if alpha > 0 else -math.inf)

    def start(self, rows: int, num_layers: int) -> State:
        """Remember the answer of the layer before, where the policy reads whether it agrees."""
        return {"previous": torch.full((rows,), -1)} if self.reads != "state" else {}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        return self.compared_value(view, state) > self.threshold

    def compared_value(self, view: LayerView, state: State) -> Tensor:
        extra = None
        if self.reads != "state":
            said = view.predictions
            extra = confidence_features(view.probs, said, state["previous"] if view.layer > 1 else None)
            state["previous"] = said
        return self.logit(view.head(POLICY, extra), view).sigmoid()

    def logit(self, output: Tensor, view: LayerView) -> Tensor:
        """Turn what the head says of the rows of a view into the logit of P(exit): [rows]."""
        return policy_logit(output, self.log_alpha)
