"""Signals: one number for each row, computed from a layer, that a rule compares with its threshold."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from consistentee.rules.view import LayerView

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

    def signal(view: LayerView) -> Tensor:
        return view.head(name).sigmoid()

    return signal
