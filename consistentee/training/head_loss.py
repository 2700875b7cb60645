"""Cross-entropy through an LM head, the largest product in training exits, without keeping logits.

Kept for every exit, logits take gigabytes; computed again in the backward pass, a third more work. The loss is a
weighted sum over tokens, so that the gradient of a logit follows from the logits: ``weight * (softmax - one-hot)``. It
is computed with them, a chunk of tokens at a time (as the fused cross-entropy of Hsu et al., Liger Kernel, 2024, arXiv
2410.10989).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from consistentee.models.base import Precision

CHUNK = 512
"""Tokens whose logits are held at a time: 100 MB of a vocabulary of 49,152."""


def weighted_cross_entropy(
    states: Tensor, lm_head: Tensor, targets: Tensor, weights: Tensor, precision: Precision = "float32"
) -> Tensor:
    """Return ``sum_i weights_i * CE_i``, a scalar; states and LM head get its gradient.

    Args:
        states: what the LM head reads: [tokens, width].
        lm_head: its weights: [vocabulary, width].
        targets: int64 [tokens], or distributions, [tokens, vocabulary]; they get no gradient.
        weights: [tokens]; they get no gradient.
        precision: of the products; softmax and sums are as precise as the states.
    """
    products = _type_of_products(states, precision)
    loss: Tensor = _WeightedCrossEntropy.apply(states, lm_head, targets, weights.detach(), products)
    return loss


@torch.no_grad()
def probabilities(states: Tensor, lm_head: Tensor, precision: Precision = "float32") -> Tensor:
    """Return the distributions of the LM head, [tokens, vocabulary]; arguments as of :func:`weighted_cross_entropy`."""
    products = _type_of_products(states, precision)
    return (states.to(products) @ lm_head.to(products).T).to(states.dtype).softmax(dim=-1)


def _type_of_products(states: Tensor, precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else states.dtype


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (torch passes all by their place)
        ctx: Any, states: Tensor, lm_head: Tensor, targets: Tensor, weights: Tensor, products: torch.dtype
    ) -> Tensor:
        head, loss = lm_head.to(products), states.new_zeros(())
        learns, head_learns, *_ = ctx.needs_input_grad
        to_states = torch.zeros_like(states)
        to_head = torch.zeros_like(lm_head) if head_learns else None
        buffer = states.new_empty(min(CHUNK, len(states)), len(lm_head))
        for start in range(0, len(states), CHUNK):
            part = slice(start, start + CHUNK)
            read, wanted, weight = states[part].to(products), targets[part], weights[part].unsqueeze(1)
            scores = buffer[: len(read)].copy_(read @ head.T)
            torch.log_softmax(scores, dim=-1, out=scores)
            loss -= (weight * _log_likelihood(scores, wanted)).sum()
            if learns or head_learns:
                slope = _minus_targets(scores.exp_().mul_(weight), wanted, weight).to(products)
                to_states[part] = slope @ head
            if to_head is not None:
                to_head += slope.T @ read
        ctx.save_for_backward(to_states, to_head)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if found is None else found * of_loss for found in ctx.saved_tensors)
        return (*gradients, None, None, None)


def _log_likelihood(log_probabilities: Tensor, wanted: Tensor) -> Tensor:
    """Compute the log-likelihood of tokens, or its mean under distributions: [tokens, 1]."""
    if wanted.dim() == 1:
        return log_probabilities.gather(1, wanted.unsqueeze(1))
    return torch.einsum("tv,tv->t", log_probabilities, wanted).unsqueeze(1)


def _minus_targets(probabilities: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Subtract the weighted targets from weighted probabilities in place: [tokens, vocabulary]."""
    if wanted.dim() == 1:
        return probabilities.scatter_add_(1, wanted.unsqueeze(1), -weight)
    return probabilities.addcmul_(wanted, weight, value=-1)
