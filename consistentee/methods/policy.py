"""The exit policy of ConsistentEE: its inputs, its output, and its exit rule.

The paper's policy is one small network for each layer that reads the pooled vector (section 3.1). Two additions, which
can be switched off, help on small training sets: the policy also reads the confidence of the classifier (top
probability, margin, entropy, agreement with the layer before), and it starts from low exit probabilities.

A policy may be *conditioned* on alpha, the price of a layer: ``p = sigmoid(a(s) + softplus(b(s)) * log alpha)``. A
higher price then never makes a row run longer, and one policy gives the whole curve.
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
"""The inputs of a policy: the pooled vector, the confidence of the classifier, or both."""

NUM_CONFIDENCE_FEATURES = 4


def policy_spec(reads: PolicyInputs, conditioned: bool) -> HeadSpec:
    """Return the head of a policy: Linear(H, 32), GELU, Linear(32, 1), or 2 outputs if it is conditioned."""
    return HeadSpec(
        outputs=2 if conditioned else 1,
        hidden=32,
        extra_inputs=0 if reads == "state" else NUM_CONFIDENCE_FEATURES,
        reads_pooled=reads != "confidence",
        initial_bias=INITIAL_BIAS,
    )


def confidence_features(probs: Tensor, prediction: Tensor, previous: Tensor | None) -> Tensor:
    """Compute top probability, margin, normalised entropy, agreement with the layer before (0 at layer 1): [rows, 4].

    Args:
        probs: [rows, classes]; of the candidates if the vocabulary is pruned.
        prediction: the predicted class, of all classes: [rows].
        previous: that of the layer before, [rows]; None at layer 1.
    """
    first, second = probs.topk(2, dim=-1).values.unbind(dim=-1)
    entropy = torch.special.entr(probs).sum(dim=-1) / math.log(probs.shape[-1])
    agrees = torch.zeros_like(first) if previous is None else (prediction == previous).to(first.dtype)
    return torch.stack([first, first - second, entropy, agrees], dim=-1)


def policy_logit(output: Tensor, log_alpha: float | Tensor | None) -> Tensor:
    """Convert a head's output to the logit of P(exit): [...].

    Args:
        output: [...], or [..., 2] if the policy is conditioned.
        log_alpha: log of the price of a layer, a number or [...]; None if the policy is not conditioned.
    """
    if log_alpha is None:
        return output
    base, slope = output.unbind(dim=-1)
    # A weight that underflows to 0 would turn a price of 0 or infinity into NaN.
    return base + functional.softplus(slope).clamp_min(torch.finfo(slope.dtype).tiny) * log_alpha


def drawn_prices(lowest: float, highest: float, count: int) -> Tensor:
    """Draw log-uniform prices of a layer for the training of a conditioned policy: float [count]."""
    low, high = torch.tensor([lowest, highest]).log()
    return (low + (high - low) * torch.rand(count)).exp()


def policy_outputs(policy: ExitHeads, pooled: Tensor, logits: Tensor) -> Tensor:
    """Compute the outputs of a policy at every layer for training: float [rows, L], or [rows, L, outputs].

    Its inputs are detached, so it does not train the backbone.

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
    """Compute P(exit) at every layer: float [rows, L]. ``log_alpha`` is [rows], or None if not conditioned."""
    outputs = policy_outputs(policy, pooled, logits)
    return policy_logit(outputs, None if log_alpha is None else log_alpha.unsqueeze(1)).sigmoid()


class PolicyRule(ExitRule):
    """Exit at the first layer with P(exit) > threshold.

    Args:
        reads: the inputs of the policy.
        threshold: on P(exit).
        alpha: the price of a layer if the policy is conditioned; 0 never exits, infinity always.
    """

    def __init__(self, reads: PolicyInputs, threshold: float = 0.5, alpha: float | None = None) -> None:
        self.reads = reads
        self.threshold = threshold
        self.log_alpha = None if alpha is None else (math.log(alpha) if alpha > 0 else -math.inf)

    def start(self, rows: int, num_layers: int) -> State:
        return {"previous": torch.full((rows,), -1)} if self.reads != "state" else {}

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        return self.compared_value(view, state) > self.threshold

    def compared_value(self, view: LayerView, state: State) -> Tensor:
        extra = None
        if self.reads != "state":
            answers = view.predictions
            extra = confidence_features(view.probs, answers, state["previous"] if view.layer > 1 else None)
            state["previous"] = answers
        return self.logit(view.head(POLICY, extra), view).sigmoid()

    def logit(self, output: Tensor, view: LayerView) -> Tensor:
        """Convert the head's output for the rows of a view to the logit of P(exit): [rows]."""
        return policy_logit(output, self.log_alpha)
