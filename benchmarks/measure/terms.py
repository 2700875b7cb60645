"""Scores as functions of means over rows, their terms, so that mixtures and resamples of rows can be scored.

The score of a mixture of two knobs is that of the weighted sample: the mixed means. Every score but that of ranks is
such a function.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]

MEAN = "mean"
"""The metric of answers that are scores themselves, whatever the labels."""
MEAN_BY_SIZE = "mean by size"
"""The metric of answers that are sums over as many parts as the labels say: a mean over all parts."""


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    is_zero = denominator <= 1e-12  # unknown ones are not, and stay unknown
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=~is_zero)


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


def has_terms(metric: str, labels: ArrayLike) -> bool:
    """Return whether a metric is a function of means over rows: not Spearman, nor F1 of more than two classes."""
    two_classes = metric not in ("f1", "matthews") or set(np.unique(labels)) <= {0, 1}
    return metric in _TERMS and two_classes


def is_mean(metric: str) -> bool:
    """Return whether the score of a mixture is the mixture of the scores."""
    return metric not in _TERMS or metric in ("accuracy", MEAN)


def terms_of(metric: str, labels: ArrayLike, answers: ArrayLike) -> Floats:
    """Compute the terms of labels and answers [N], [N, terms], for a metric that :func:`has_terms`."""
    return _TERMS[metric][0](np.asarray(labels, dtype=float), np.asarray(answers, dtype=float))


def score_of_means(metric: str, means: Floats) -> Floats:
    """Compute the scores [...] of means of terms [..., terms]; those of a mixture are the mixture of the means."""
    return _TERMS[metric][1](*np.moveaxis(means, -1, 0))
