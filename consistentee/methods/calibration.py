"""Choose a threshold with a guarantee about the text by Learn-then-Test, as CALM does.

Sources: Schuster et al., CALM, NeurIPS 2022, arXiv 2207.07061, section 4 (the guarantees, and the order of tests);
Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052, section 2 (the first failure ends them, and the p-value).

The guarantee: with probability at least ``1 - epsilon`` over the choice of the calibration prompts, the risk on new
prompts, the mean of a loss in 0..1, is at most ``delta``. It needs no model and no distribution.
"""

import math
from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.data.metrics import rouge
from consistentee.errors import UserError

Losses = NDArray[np.float64]
"""[prompts, thresholds], each in 0..1, the thresholds from the most cautious one on."""


def hoeffding_bentkus(mean_loss: float, count: int, delta: float) -> float:
    """Compute the p-value of "the risk is above ``delta``" for ``count`` losses in 0..1 with a given mean.

    The smaller of Hoeffding's bound, ``exp(-n KL(mean, delta))``, and Bentkus's, ``e P(Binomial(n, delta) <= ceil(n
    mean))`` (Learn then Test, section 2); 1 if the mean is not below delta.
    """
    if mean_loss >= delta:
        return 1.0
    divergence = (1 - mean_loss) * math.log((1 - mean_loss) / (1 - delta))
    divergence += mean_loss * math.log(mean_loss / delta) if mean_loss else 0.0
    losses_at_most = math.ceil(round(count * mean_loss, 6))  # rounded: 40.000000001 is 40
    bentkus = math.e * _at_most(losses_at_most, count, delta)
    return min(1.0, math.exp(-count * divergence), bentkus)


def binomial(mean_loss: float, count: int, delta: float) -> float:
    """Compute the exact p-value of "the risk is above ``delta``" for ``count`` losses that are 0 or 1."""
    return _at_most(round(count * mean_loss), count, delta)


def _at_most(losses: int, count: int, probability: float) -> float:
    """Compute the probability of at most so many losses among ``count`` that each have this probability."""
    numbers = np.arange(1, losses + 1)
    ratios = np.log((count + 1 - numbers) / numbers) + math.log(probability / (1 - probability))
    logarithms = count * math.log1p(-probability) + np.concatenate([[0.0], ratios.cumsum()])
    return min(1.0, float(np.exp(logarithms).sum()))


PValue = Callable[[float, int, float], float]
"""(mean loss, number of losses, delta) -> p-value of "the risk is above delta"."""


def learn_then_test(losses: ArrayLike, delta: float, epsilon: float = 0.05, p_value: PValue = hoeffding_bentkus) -> int:
    """Test from the most cautious threshold down; return the index of the last one before the first failure, or -1.

    This order bounds the probability of a wrong guarantee by ``epsilon`` without a correction for the number of tests.
    With -1 nothing is guaranteed: use the most cautious threshold.

    ``delta`` is the accepted risk, ``epsilon`` the accepted probability of a broken guarantee. Raises UserError for
    losses outside of 0..1, no prompts, or a delta or epsilon outside of 0..1.
    """
    checked = checked_losses(losses, low=0.0, high=1.0)
    check_shares(delta=delta, epsilon=epsilon)
    means = checked.mean(axis=0).tolist()
    passing = takewhile(lambda mean_loss: p_value(mean_loss, len(checked), delta) <= epsilon, means)
    return len(list(passing)) - 1


def checked_losses(losses: ArrayLike, *, low: float = -math.inf, high: float = math.inf) -> Losses:
    """Return losses as an array [rows, thresholds]. Raises UserError if it is empty or not in ``low..high``."""
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise UserError(f"calibration needs a loss for every prompt and threshold, got a table of {table.shape}")
    if not ((table >= low) & (table <= high)).all():
        raise UserError(f"calibration needs losses in {low:g}..{high:g}: its bound holds for no others")
    return table


def check_shares(**shares: float) -> None:
    """Raise UserError for a share that is not between 0 and 1."""
    for name, value in shares.items():
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1, got {value:g}")


def textual_losses(texts: Sequence[str], full_texts: Sequence[str]) -> Losses:
    """Compute 1 - ROUGE-L to the full model's texts: [prompts], 0 for equal texts (CALM, textual consistency)."""
    equal = np.array([text == full for text, full in zip(texts, full_texts, strict=True)], dtype=bool)
    return np.where(equal, 0.0, 1 - rouge(full_texts, texts, ["rougeL"])["rougeL"])
