"""Every bootstrap interval and test of the project: of a mean, of any task's score, over rows, and over rows and seeds.

It is the percentile bootstrap. With several seeds it is crossed: rows and seeds are drawn independently of each other,
because every seed answers the same rows. A suite has thousands of points, so resamples are written as counts of rows,
and all of them are scored by one matrix product.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.data.metrics import score

Floats = NDArray[np.float64]

MEAN = "mean"
"""The metric of answers that are scores themselves, whatever the labels."""
MEAN_BY_SIZE = "mean by size"
"""The metric of answers that are sums over as many parts as the labels say: a mean over all parts."""

RESAMPLES = 1000
_AT_ONCE = 100
_THREADS = 2
_OF_WHOLE_NUMBERS = ("accuracy", "f1", "matthews")


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 1e-12)


def _correlation(terms: Floats) -> Floats:
    x, y, xx, yy, xy = np.moveaxis(terms, -1, 0)
    return _ratio(xy - x * y, np.sqrt(np.clip((xx - x * x) * (yy - y * y), 0, None)))


def _products(true: Floats, answers: Floats) -> Floats:
    return np.stack([true, answers, true * true, answers * answers, true * answers], axis=-1)


_TERMS: dict[str, tuple[Callable[[Floats, Floats], Floats], Callable[[Floats], Floats]]] = {
    "accuracy": (lambda true, answers: (true == answers)[:, None].astype(float), lambda terms: terms[..., 0]),
    "f1": (
        lambda true, answers: np.stack([true * answers, true != answers], axis=-1).astype(float),
        lambda terms: _ratio(2 * terms[..., 0], 2 * terms[..., 0] + terms[..., 1]),
    ),
    "matthews": (_products, _correlation),  # of two classes, 0 and 1: the correlation of the answers with the truth
    "pearson": (_products, _correlation),
    MEAN: (lambda _, answers: answers[:, None], lambda terms: terms[..., 0]),
    MEAN_BY_SIZE: (
        lambda sizes, answers: np.stack([answers, sizes], axis=-1),
        lambda terms: _ratio(terms[..., 0], terms[..., 1]),
    ),
}
"""Metric -> (what a row contributes [N, terms], the score of the terms' mean [..., terms])."""


def can_resample(metric: str, labels: ArrayLike) -> bool:
    """Return whether a metric is a function of means over rows: not Spearman, nor F1 of more than two classes."""
    two_classes = metric not in ("f1", "matthews") or set(np.unique(labels)) <= {0, 1}
    return metric in _TERMS and two_classes


@lru_cache(maxsize=4)
def resample_counts(rows: int, resamples: int, part: int, seed: int) -> NDArray[np.float32]:
    """Draw rows with replacement, and count how often each was drawn: [resamples, rows]."""
    generator = np.random.default_rng([seed, rows, part])
    counts = np.empty((resamples, rows), dtype=np.float32)
    for start in range(0, resamples, _AT_ONCE):  # few enough counters for the processor's cache
        size = min(_AT_ONCE, resamples - start)
        drawn = generator.integers(rows, size=(size, rows), dtype=np.int32)
        places = drawn + (rows * np.arange(size, dtype=np.int64))[:, None]
        counts[start : start + size] = np.bincount(places.ravel(), minlength=size * rows).reshape(size, rows)
    return counts


def resampled_terms(
    metric: str, labels: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Compute, for every resample of the rows, the means over rows that a score is a function of.

    They are linear: those of a random mixture of rules are the mixture of the rules' own. Equal numbers of rows and
    equal ``seed`` give the same resamples, so that differences between methods are paired.

    Args:
        metric: one that :func:`can_resample`, or :data:`MEAN` or :data:`MEAN_BY_SIZE`.
        labels: [N].
        predictions: [rules, N].
        resamples: how many.
        seed: of the resampling.

    Returns:
        [rules, resamples, terms], of which :func:`score_of_terms` makes scores.
    """
    true = np.asarray(labels, dtype=float)
    terms = np.stack([_TERMS[metric][0](true, one) for one in np.asarray(predictions, dtype=float)])
    # Sums of few whole numbers are exact in float32, and twice as fast.
    by_term = np.moveaxis(terms, 1, -1).astype(np.float32 if metric in _OF_WHOLE_NUMBERS else float)
    sizes = [min(RESAMPLES, resamples - start) for start in range(0, resamples, RESAMPLES)]
    flat = by_term.reshape(-1, true.size)
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = threads.map(lambda part: flat @ resample_counts(true.size, sizes[part], part, seed).T, range(len(sizes)))
        means = np.concatenate(list(sums), axis=1) / np.float64(true.size)
    return np.moveaxis(means.reshape(*by_term.shape[:2], resamples), 1, -1)


def over_any_task(samples: Floats | None) -> Floats | None:
    """Average samples [tasks, resamples] over tasks drawn with replacement; None of a single task."""
    if samples is None or len(samples) < 2:
        return None
    tasks, resamples = samples.shape
    drawn = np.random.default_rng([tasks, 2]).integers(tasks, size=(tasks, resamples))
    return np.asarray(np.take_along_axis(samples, drawn, axis=0).mean(axis=0))


def score_of_terms(metric: str, terms: Floats) -> Floats:
    """Compute the scores of means over rows [..., terms], see :func:`resampled_terms`: [...]."""
    return _TERMS[metric][1](terms)


def score_of_mixture(
    metric: str, labels: ArrayLike, answers: tuple[ArrayLike, ArrayLike], weight: float = 1.0
) -> float:
    """Compute the score when a row takes the first of two rules' answers with probability ``weight``, else the second.

    Args:
        metric: as in :func:`resampled_terms`, or any other metric of a task.
        labels: [N].
        answers: of both rules, [N] each.
        weight: share of the first.
    """
    true, shares = np.asarray(labels), (weight, 1 - weight)
    if can_resample(metric, true):
        terms = [_TERMS[metric][0](true.astype(float), np.asarray(one, dtype=float)).mean(axis=0) for one in answers]
        return float(score_of_terms(metric, shares[0] * terms[0] + shares[1] * terms[1]))
    return score(metric, np.tile(true, 2), np.concatenate(answers), np.repeat(shares, true.size))


def mean_over_drawn_seeds(scores: Floats, *, seed: int = 0) -> Floats:
    """Draw as many seeds as there are, with replacement, once a resample, and average: [RESAMPLES]."""
    resamples, seeds = scores.shape
    return scores[:, 0] if seeds == 1 else np.take_along_axis(scores, _drawn(seeds, resamples, seed), 1).mean(axis=1)


@lru_cache(maxsize=4)
def _drawn(seeds: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1]).integers(seeds, size=(resamples, seeds))


def interval(samples: Floats) -> tuple[float, float]:
    """Compute the 95% percentile interval of bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def interval_over_rows_and_seeds(
    metric: str, labels: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95% bootstrap interval of a score averaged over seeds.

    Args:
        metric: as in :func:`score_of_mixture`.
        labels: [N].
        predictions: [seeds, N]. With one seed the interval is over rows alone.
        resamples, seed: of the resampling.
    """
    true, answers = np.asarray(labels), np.asarray(predictions)
    if can_resample(metric, true):
        scores = score_of_terms(metric, resampled_terms(metric, true, answers, resamples=resamples, seed=seed))
        return interval(mean_over_drawn_seeds(scores.T, seed=seed))
    # A score of ranks, or of many classes: rows alone, seed by seed, and the bounds averaged.
    drawn = np.random.default_rng([seed, true.size]).integers(true.size, size=(resamples, true.size))
    bounds = [interval(np.array([score(metric, true[rows], one[rows]) for rows in drawn])) for one in answers]
    low, high = np.mean(bounds, axis=0)
    return float(low), float(high)


def score_interval(
    metric: str, labels: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95% percentile bootstrap interval of a score, over rows.

    Args:
        metric: a name of :data:`consistentee.data.metrics.METRICS`, or :data:`MEAN`.
        labels, predictions: [N].
        resamples: number of bootstrap samples.
        seed: of the resampling; equal seeds give equal intervals.
    """
    return interval_over_rows_and_seeds(metric, labels, np.asarray(predictions)[None], resamples=resamples, seed=seed)


def p_value(samples: Floats) -> float:
    """Compute the two-sided p value of a bootstrap: twice the share of samples on the rarer side of 0."""
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
