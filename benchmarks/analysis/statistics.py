"""Every bootstrap interval and test of the project: of a mean, of any task's score, over rows, and over rows and seeds.

It is the percentile bootstrap. With several seeds it is crossed: rows and seeds are drawn independently of each other,
because every seed answers the same rows. Every score but that of ranks is a function of means over rows, its terms:
resamples are written as counts of rows, and the terms of all points of a task are resampled by one matrix product.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from consistentee.data.metrics import score

Floats = NDArray[np.floating]

MEAN = "mean"
"""The metric of answers that are scores themselves, whatever the labels."""
MEAN_BY_SIZE = "mean by size"
"""The metric of answers that are sums over as many parts as the labels say: a mean over all parts."""

RESAMPLES = 1000
_COUNTERS = 60_000
"""Counters of resamples that are filled at once: few enough for the processor's cache."""


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 1e-12)


def _correlation(x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats) -> Floats:
    return _ratio(xy - x * y, np.sqrt(np.clip((xx - x * x) * (yy - y * y), 0, None)))


def _zeros_and_ones(*terms: ArrayLike) -> Floats:
    return np.stack(np.broadcast_arrays(*terms), axis=-1).astype(np.float32)  # their sums are exact below 2^24


def _products(true: Floats, answers: Floats) -> Floats:
    return np.stack([true, answers, true * true, answers * answers, true * answers], axis=-1)


_TERMS: dict[str, tuple[Callable[[Floats, Floats], Floats], Callable[..., Floats]]] = {
    "accuracy": (lambda true, answers: _zeros_and_ones(true == answers), lambda right: right),
    "f1": (
        lambda true, answers: _zeros_and_ones(true * answers, true != answers),
        lambda both, differ: _ratio(2 * both, 2 * both + differ),
    ),
    "matthews": (  # of two classes, 0 and 1, which are their own squares: the correlation of the answers with the truth
        lambda true, answers: _zeros_and_ones(true, answers, true * answers),
        lambda x, y, xy: _correlation(x, y, x, y, xy),
    ),
    "pearson": (_products, _correlation),
    MEAN: (lambda _, answers: answers[:, None], lambda values: values),
    MEAN_BY_SIZE: (lambda sizes, answers: np.stack([answers, sizes], axis=-1), _ratio),
}
"""Metric -> (terms of the rows [N, terms], the score of the means of the terms, an argument each)."""


def can_resample(metric: str, labels: ArrayLike) -> bool:
    """Return whether a metric is a function of means over rows: not Spearman, nor F1 of more than two classes."""
    two_classes = metric not in ("f1", "matthews") or set(np.unique(labels)) <= {0, 1}
    return metric in _TERMS and two_classes


def terms_of(metric: str, labels: ArrayLike, answers: ArrayLike) -> Floats:
    """Compute the terms of labels and answers [N], [N, terms], for a metric that :func:`can_resample`."""
    return _TERMS[metric][0](np.asarray(labels, dtype=float), np.asarray(answers, dtype=float))


@lru_cache(maxsize=40)  # several tasks have equally many rows
def resample_counts(rows: int, part: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """Draw rows with replacement, and count how often each was drawn: [rows, resamples].

    Equal arguments give the same resamples, so that differences between methods are paired.
    """
    counts = np.empty((resamples, rows), dtype=np.uint16)
    generator = np.random.default_rng([seed, rows, part])
    at_once = max(1, _COUNTERS // rows)
    first_places, places = np.repeat(rows * np.arange(at_once), rows), np.empty(at_once * rows, dtype=np.int64)
    for start in range(0, resamples, at_once):
        size = rows * min(at_once, resamples - start)
        drawn = generator.integers(rows, size=size, dtype=np.int32)
        np.add(drawn, first_places[:size], out=places[:size])
        counts[start : start + at_once] = np.bincount(places[:size], minlength=size).reshape(-1, rows)
    return counts.T


def resampled_means(terms: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Compute the means of terms [points, N, terms] over all resamples of the rows: [points, resamples, terms]."""
    rows = terms.shape[1]
    flat = np.moveaxis(terms, 1, -1).reshape(-1, rows)
    sums = np.empty((len(flat), resamples))
    with threadpool_limits(1, "blas"):  # beside other work several threads wait for each other, four times as long
        for start in range(0, resamples, RESAMPLES):
            counts = resample_counts(rows, start // RESAMPLES, min(RESAMPLES, resamples - start), seed)
            sums[:, start : start + RESAMPLES] = flat @ counts.astype(flat.dtype)
    sums /= rows
    return np.moveaxis(sums.reshape(len(terms), -1, resamples), 1, -1)


def score_of_means(metric: str, means: Floats) -> Floats:
    """Compute the scores [...] of means of terms [..., terms]; those of a mixture are the mixture of the means."""
    return _TERMS[metric][1](*np.moveaxis(means, -1, 0))


def over_any_task(samples: Floats) -> Floats | None:
    """Average samples [tasks, resamples] over tasks drawn with replacement; None of a single task."""
    if len(samples) < 2:
        return None
    tasks, resamples = samples.shape
    return np.asarray(np.take_along_axis(samples, _drawn_tasks(tasks, resamples), axis=0).mean(axis=0))


@lru_cache(maxsize=4)
def _drawn_tasks(tasks: int, resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng([tasks, 2]).integers(tasks, size=(tasks, resamples))


def score_of_mixture(
    metric: str, labels: ArrayLike, answers: tuple[ArrayLike, ArrayLike], weight: float = 1.0
) -> float:
    """Compute the score when a row takes the first of two rules' answers with probability ``weight``, else the second.

    Labels and both rules' answers are [N]. Metrics that are no function of means weigh the rows of both rules.
    """
    true, shares = np.asarray(labels), (weight, 1 - weight)
    if can_resample(metric, true):
        first, second = (terms_of(metric, true, one).mean(axis=0, dtype=float) for one in answers)
        return float(score_of_means(metric, weight * first + (1 - weight) * second))
    return score(metric, np.tile(true, 2), np.concatenate(answers), np.repeat(shares, true.size))


def mean_over_drawn_seeds(scores: Floats, *, seed: int = 0) -> Floats:
    """Draw as many seeds as there are, with replacement, once a resample, and average [seeds, resamples] over them."""
    return scores[0] if len(scores) == 1 else np.asarray((scores * _weights(*scores.shape, seed)).sum(axis=0))


@lru_cache(maxsize=40)  # every task has its own
def _weights(seeds: int, resamples: int, seed: int) -> Floats:
    """Return the share of each seed among those that were drawn, [seeds, resamples]."""
    drawn = np.random.default_rng([seed, 1]).integers(seeds, size=(resamples, seeds))
    return np.asarray((drawn == np.arange(seeds)[:, None, None]).mean(axis=2))


def interval(samples: Floats) -> tuple[float, float]:
    """Compute the 95% percentile interval of bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def score_interval(
    metric: str, labels: ArrayLike, predictions: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95% percentile bootstrap interval of a score, over rows; of several seeds' mean, over seeds as well.

    Args:
        metric: a name of :data:`consistentee.data.metrics.METRICS`, or :data:`MEAN`.
        labels: [N].
        predictions: [N], or [seeds, N].
        resamples: number of bootstrap samples.
        seed: of the resampling; equal seeds give equal intervals.
    """
    return score_intervals(metric, labels, [predictions], resamples=resamples, seed=seed)[0]


def score_intervals(
    metric: str, labels: ArrayLike, predictions: Sequence[ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[tuple[float, float]]:
    """Compute :func:`score_interval` of several predictions of the same rows."""
    true, answers = np.asarray(labels), [np.atleast_2d(one) for one in predictions]
    if can_resample(metric, true):
        terms = np.stack([terms_of(metric, true, seeds) for one in answers for seeds in one])
        scores = score_of_means(metric, resampled_means(terms, resamples=resamples, seed=seed))
        by_point = np.split(scores, np.cumsum([len(one) for one in answers])[:-1])
        return [interval(mean_over_drawn_seeds(of_seeds, seed=seed)) for of_seeds in by_point]
    # A score of ranks, or of many classes: rows alone, seed by seed, and the bounds averaged.
    drawn = np.random.default_rng([seed, true.size]).integers(true.size, size=(resamples, true.size))
    bounds = [
        np.mean(
            [interval(np.array([score(metric, true[rows], seeds[rows]) for rows in drawn])) for seeds in one], axis=0
        )
        for one in answers
    ]
    return [(float(low), float(high)) for low, high in bounds]


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
