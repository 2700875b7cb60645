"""Signals: one number for each row, computed from a layer, that a rule compares with its threshold. A public module."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from consistentee.rules.view import LayerView

__all__ = [
    "Signal",
    "entropy",
    "entropy_thresholds",
    "even_log_odds",
    "falling_fractions",
    "head_probability",
    "margin",
    "normalised_entropy",
    "top_probability",
]

Signal = Callable[[LayerView], Tensor]
"""A function of a view: float [rows]."""


def entropy(view: LayerView) -> Tensor:
    """Compute the entropy of the predicted distribution in nats, 0 to ln C (DeeBERT)."""
    return torch.special.entr(view.probs).sum(dim=-1)


def normalised_entropy(view: LayerView) -> Tensor:
    """Compute the entropy divided by ln C: 0 (certain) to 1 (uniform)."""
    return entropy(view) / math.log(view.logits.shape[-1])


def top_probability(view: LayerView) -> Tensor:
    """Compute the probability of the predicted class."""
    return view.probs.amax(dim=-1)


def margin(view: LayerView) -> Tensor:
    """Compute the difference of the two largest probabilities (CALM's softmax confidence)."""
    first, second = view.probs.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def head_probability(name: str) -> Signal:
    """Return the signal of a learned head with one output: its sigmoid."""
    return lambda view: view.head(name).sigmoid()


NUM_CONFIDENCE_FEATURES = 4


def confidence_features(probs: Tensor, prediction: Tensor, previous: Tensor) -> Tensor:
    """Compute top probability, margin, normalised entropy, and agreement with the layer before: [..., 4].

    ``probs`` [..., classes] are of the candidates if the vocabulary is pruned; ``prediction`` and ``previous`` [...] of
    all classes, and -1 where there is no layer before.
    """
    first, second = probs.topk(2, dim=-1).values.unbind(dim=-1)
    entropy = torch.special.entr(probs).sum(dim=-1) / math.log(probs.shape[-1])
    return torch.stack([first, first - second, entropy, (prediction == previous).to(first.dtype)], dim=-1)


def even_log_odds(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return probabilities with evenly spaced log-odds from ``first`` to ``last``: dense near 0 and 1."""
    return tuple(torch.linspace(first, last, count).sigmoid().tolist())


def falling_fractions(decades: int) -> tuple[float, ...]:
    """Return fractions from 1 down to ``10 ** -decades``, twelve for each decade."""
    return tuple(10.0 ** (-exponent / 12) for exponent in range(12 * decades + 1))


def entropy_thresholds(classes: int, decades: int = 6) -> tuple[float, ...]:
    """Return entropy thresholds in nats, from just above ln C down some decades, and 0.

    A row exits below a threshold, so all rows exit only with a threshold above ln C.
    """
    largest = 1.001 * math.log(classes)
    return (*(fraction * largest for fraction in falling_fractions(decades)), 0.0)
