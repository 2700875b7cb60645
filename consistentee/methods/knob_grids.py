"""Grids of knob values that several methods share, dense where trained exits differ."""

import math

import torch


def even_log_odds(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return probabilities with evenly spaced log-odds from ``first`` to ``last``: dense near 0 and 1."""
    return tuple(torch.linspace(first, last, count).sigmoid().tolist())


def falling_fractions(decades: int) -> tuple[float, ...]:
    """Return fractions from 1 down to ``10 ** -decades``, twelve for each decade."""
    return tuple(10.0 ** (-exponent / 12) for exponent in range(12 * decades + 1))


def entropy_thresholds(classes: int, decades: int, beyond: float = 1.0) -> tuple[float, ...]:
    """Return entropy thresholds in nats, from ``beyond`` times ln C down some decades, and 0.

    A row exits below a threshold, so all rows exit only with a threshold beyond ln C, ``beyond=1.001``.
    """
    largest = math.log(classes) * beyond
    return (*(fraction * largest for fraction in falling_fractions(decades)), 0.0)
