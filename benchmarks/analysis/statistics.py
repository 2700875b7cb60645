"""Averages over seeds, and paired tests between methods."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same rows.

    Attributes:
        rows: number of rows.
        only_first, only_second: rows that only one of them has right.
        difference: accuracy of the first minus accuracy of the second.
        p_value: exact McNemar test, two-sided, not corrected for the number of tests.
    """

    rows: int
    only_first: int
    only_second: int
    difference: float
    p_value: float


def mean_and_std(values: ArrayLike) -> tuple[float, float | None]:
    """Return the mean, and the sample standard deviation where there is more than one value."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def paired_test(first_correct: ArrayLike, second_correct: ArrayLike) -> PairedTest:
    """Compare two methods by which rows each has right: bool [N] and bool [N], in the same order."""
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired test needs the same rows, got {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    return PairedTest(
        rows=first.size,
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / first.size,
        p_value=float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0,
    )


def holm(p_values: ArrayLike) -> list[float]:
    """Correct p-values for their number by Holm's procedure: the i-th smallest of n is multiplied by ``n - i + 1``.

    A larger one is never corrected to less than a smaller one, and none to more than 1.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return [float(value) for value in corrected]
