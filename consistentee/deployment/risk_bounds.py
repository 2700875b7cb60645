"""Bounds of risk control: how far towards early exits calibration rows allow a knob to be turned.

Sources: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv 2208.02814 (section 2, and 4.3 for losses that
are not monotone); Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2023, arXiv
2010.09686; Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052. Applied to early exits by Jazbec et al., Fast
yet Safe, NeurIPS 2024, arXiv 2405.20915.

All take losses [rows, knobs], the knobs from the most cautious one on, and return the index of the most permissive knob
that they allow, or -1 for none. Rows must be drawn as the later ones are, and unused before.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.methods.calibration import (
    Losses,
    binomial,
    check_shares,
    checked_losses,
    hoeffding_bentkus,
    learn_then_test,
)

RiskBound = Callable[[ArrayLike, float, float, float], int]
"""(losses, tolerated risk, delta, the highest loss there can be) -> index of a knob, or -1."""


def conformal(losses: ArrayLike, risk: float, delta: float, highest: float) -> int:
    """Conformal risk control (CRC): the *expected* risk, over draws of the calibration rows too, is at most ``risk``.

    ``delta`` plays no part. A row's loss counts as the largest one at any more cautious knob: the proof needs losses
    that only grow.
    """
    table = _checked(losses, risk, delta, highest)
    worst = np.maximum.accumulate(table, axis=1).mean(axis=0)
    rows = len(table)
    return _unbroken(worst <= ((rows + 1) * risk - highest) / rows)


def upper_confidence(losses: ArrayLike, risk: float, delta: float, highest: float) -> int:
    """UCB with the bound of Waudby-Smith and Ramdas: with probability ``1 - delta`` the risk is at most ``risk``.

    The bound is below ``risk`` exactly where the wealth of a bet against "the mean is ``risk`` or more" has at some
    time reached ``1 / delta``, so that no bound has to be solved for. Losses may be negative: a factor of the wealth
    needs only ``loss - risk < highest`` to stay positive. Going on only while every more cautious knob has passed makes
    the promise hold for all of them at once.
    """
    table = _checked(losses, risk, delta, highest)
    return _unbroken(_log_wealth(table, risk, delta, highest) >= math.log(1 / delta))


def _log_wealth(losses: Losses, risk: float, delta: float, highest: float) -> NDArray[np.float64]:
    """Return the logarithm of the highest wealth that each knob's bet ever had: [knobs]."""
    rows = len(losses)
    time = np.arange(1, rows + 1)[:, None]
    mean = (0.5 + losses.cumsum(axis=0)) / (time + 1)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(axis=0)) / (time + 1)
    variance_before = np.vstack([np.full((1, losses.shape[1]), 0.25), variance[:-1]])  # a bet must not see its own row
    stake = np.minimum(1 / highest, np.sqrt(2 * math.log(1 / delta) / (rows * variance_before)))
    return np.log1p(-stake * (losses - risk)).cumsum(axis=0).max(axis=0)


def tested(losses: ArrayLike, risk: float, delta: float, highest: float) -> int:
    """Learn then Test (LTT): with probability ``1 - delta`` the risk is at most ``risk``.

    Gains count as no loss, since its p-values need losses that are not negative. Losses of 0 and 1 alone are tested by
    the binomial distribution, which is exact; others by :func:`hoeffding_bentkus`.
    """
    scaled = np.clip(_checked(losses, risk, delta, highest), 0.0, None) / highest
    p_value = binomial if np.isin(scaled, (0.0, 1.0)).all() else hoeffding_bentkus
    found = learn_then_test(scaled, delta=risk / highest, epsilon=delta, p_value=p_value)
    return found.chosen if found.accepted else -1


def _checked(losses: ArrayLike, risk: float, delta: float, highest: float) -> Losses:
    check_shares(risk=risk, delta=delta)
    return checked_losses(losses, high=highest)


def _unbroken(allowed: NDArray[np.bool_]) -> int:
    """Return the index of the last True before the first False, or -1."""
    return int(np.cumprod(allowed).sum()) - 1


BOUNDS: dict[str, RiskBound] = {"crc": conformal, "ucb": upper_confidence, "ltt": tested}
"""By the names that the field has for them."""
