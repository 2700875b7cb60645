"""Values that several methods sweep: dense where trained exits differ, which are mostly near certain."""

import math

import torch


def even_log_odds(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return probabilities whose log-odds lie evenly from ``first`` to ``last``: dense near 0 and near 1."""
    return tuple(torch.linspace(first, last, count).sigmoid().tolist())


def falling_fractions(decades: int) -> tuple[float, ...]:
    """Return fractions from 1 down to ``10 ** -decades``, twelve a decade."""
    return tuple(10.0 ** (-exponent / 12) for exponent in range(12 * decades + 1))


def entropy_thresholds(classes: int, decades: int, beyond: float = 1.0) -> tuple[float, ...]:
    """Return thresholds on an entropy, in nats, from ``beyond`` times the largest one, ln C, down some decades; and 0.

    A row leaves below a threshold, so that only one beyond ln C, ``beyond=1.001``, lets all rows leave.
    """
    largest = math.log(classes) * beyond
    return (*(fraction * largest for fraction in falling_fractions(decades)), 0.0)
