"""Every bootstrap interval and test of the project: over rows, and over rows and seeds.

It is the percentile bootstrap. With several seeds it is crossed: rows and seeds are drawn independently of each other,
because every seed answers the same rows. Resamples are written as counts of rows, and the terms of all points of a task
(:mod:`benchmarks.measure.terms`) are resampled by one matrix product.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from benchmarks.measure.terms import Floats

RESAMPLES = 10_000
UNKNOWN = np.full(RESAMPLES, np.nan)
"""Samples of points that are unknown: all NaN, as are sums, means and intervals with them."""
POWER = 1.96 + 0.84
"""Standard errors of a difference that a two-sided test at 5% finds with a probability of 80%."""
_AT_ONCE = 1000


@lru_cache(maxsize=40)  # several tasks have equally many rows
def resample_counts(rows: int, part: int, resamples: int) -> NDArray[np.uint16]:
    """Draw rows with replacement, and count how often each was drawn: [rows, resamples].

    Equal arguments give the same resamples, so that differences between methods are paired.
    """
    counts = np.empty((resamples, rows), dtype=np.uint16)
    generator = np.random.default_rng([0, rows, part])
    for start in range(0, resamples, 50):  # one at a time takes longer for few rows, all at once more memory
        some = counts[start : start + 50]
        drawn = generator.integers(rows, size=some.shape, dtype=np.int32) + rows * np.arange(len(some))[:, None]
        some[:] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(some.shape)
    return counts.T


def resampled_means(terms: Floats, *, resamples: int = RESAMPLES) -> Floats:
    """Compute the means of terms [points, N, terms] over all resamples of the rows: [points, resamples, terms]."""
    rows = terms.shape[1]
    flat = np.moveaxis(terms, 1, -1).reshape(-1, rows)
    sums = np.empty((len(flat), resamples))
    with threadpool_limits(1, "blas"):  # beside other work several threads wait for each other, four times as long
        for start in range(0, resamples, _AT_ONCE):
            counts = resample_counts(rows, start // _AT_ONCE, min(_AT_ONCE, resamples - start))
            sums[:, start : start + _AT_ONCE] = flat @ counts.astype(flat.dtype)
    sums /= rows
    return np.moveaxis(sums.reshape(len(terms), -1, resamples), 1, -1)


def over_any_task(samples: Floats) -> Floats:
    """Average samples [tasks, resamples] over tasks drawn with replacement; unknown of a single task."""
    tasks, resamples = samples.shape
    if tasks < 2:
        return UNKNOWN
    return np.asarray(np.take_along_axis(samples, _drawn_tasks(tasks, resamples), axis=0).mean(axis=0))


@lru_cache(maxsize=4)
def _drawn_tasks(tasks: int, resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng([tasks, 2]).integers(tasks, size=(tasks, resamples))


def mean_over_drawn_seeds(scores: Sequence[Floats] | Floats, *, seed: int = 0) -> Floats:
    """Draw as many seeds as there are, with replacement, once a resample, and average [seeds, resamples] over them."""
    if len(scores) == 1:
        return scores[0]
    weights = _weights(len(scores), len(scores[0]), seed)
    return np.asarray(sum(score * weight for score, weight in zip(scores, weights, strict=True)))


@lru_cache(maxsize=40)  # every task has its own
def _weights(seeds: int, resamples: int, seed: int) -> Floats:
    """Return the share of each seed among those that were drawn, [seeds, resamples]."""
    drawn = np.random.default_rng([seed, 1]).integers(seeds, size=(resamples, seeds))
    return np.asarray((drawn == np.arange(seeds)[:, None, None]).mean(axis=2))


def known_mean(values: pd.Series) -> float:
    """Average values; NaN if one is unknown."""
    return float(values.mean(skipna=False))


def interval(samples: Floats) -> tuple[float, float]:
    """Compute the 95% percentile interval of bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def p_value(samples: Floats) -> float:
    """Compute the two-sided p value of a bootstrap: twice the share of samples on the rarer side of 0."""
    if np.isnan(samples).any():
        return np.nan
    rarer = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (samples.size + 1))


def holm(p_values: ArrayLike) -> Floats:
    """Correct p values for their number by Holm's procedure: the i-th smallest of n is multiplied by ``n - i + 1``.

    A larger one is never corrected to less than a smaller one, and none to more than 1. NaN stays and does not count.
    """
    values = np.asarray(p_values, dtype=float)
    corrected = np.full(values.shape, np.nan)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]
    factors = np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return corrected
