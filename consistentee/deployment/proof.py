"""Prove on rows that were used for nothing else that answers lose at most so many points of accuracy.

The rows are in random order. A test bets, row by row, against "it loses more than that", with a stake that was learnt
on other rows: if the claim were true, wealth would hardly grow. Ways are tested in a fixed order, from the safest one
on, until one fails: with the probability asked for, all that passed keep the loss.

Sources: Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052 (fixed sequence testing); Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, 2023, arXiv 2010.09686.
"""

import math

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
"""1 for a point lost against the incoming model, -1 for one won, 0 otherwise: [rows] or [rows, ways]."""

_STAKES = np.linspace(0.02, 0.98, 49)


def rows_needed(loss: float, probability: float, choosing: int) -> int:
    """Return how many rows a proof takes if nothing at all is lost, for a loss in points and rows for choosing."""
    stake = float(bets(np.zeros((choosing, 1)), loss)[0][0])
    return math.ceil(math.log(1 / (1 - probability)) / math.log1p(stake * loss / 100))


def proven(choosing: Losses, proof: Losses, loss: float, probability: float) -> list[int]:
    """Test ways one after the other until one fails; with ``probability`` all that passed lose at most ``loss`` points.

    The rows for the proof are in random order: a bet may be ended at its highest wealth.

    Args:
        choosing: losses of the ways on rows that determine the order, the safest first: [rows, ways].
        proof: on rows that were used for nothing else: [rows, ways].

    Returns:
        The numbers of the ways that passed, in the order in which they were tested.
    """
    stakes, evidence = bets(choosing, loss)
    order = np.argsort(-evidence, kind="stable")
    wealth = np.log1p(-stakes * (proof - loss / 100)).cumsum(axis=0).max(axis=0)
    return order[: leading(wealth[order] >= math.log(1 / (1 - probability)))].tolist()


def leading(passed: NDArray[np.bool_]) -> int:
    """Count the tests that passed before the first one that failed."""
    return int(np.cumprod(passed).sum())


def bets(losses: Losses, loss: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose for each way how much to bet against "it loses more than ``loss`` points", on losses [rows, ways].

    A bet multiplies its wealth by ``1 - stake * (loss of a row - loss)``, on average at most 1 if that is true. Half a
    row that loses is added, because a few rows without a loss would stake everything.

    Returns:
        The stakes, and the logarithms of the wealth that they would have had: [ways] each.
    """
    risk = loss / 100
    wealth = np.stack([np.log1p(-s * (losses - risk)).sum(axis=0) + np.log1p(-s * (1 - risk)) / 2 for s in _STAKES])
    return _STAKES[wealth.argmax(axis=0)], wealth.max(axis=0)
