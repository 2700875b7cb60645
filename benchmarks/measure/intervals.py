"""Bootstrap intervals of a score over rows."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from consistentee.data.metrics import score

_RESAMPLES_AT_ONCE = 100


def score_interval(
    metric: str, labels: ArrayLike, predictions: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of a score, over rows.

    Args:
        metric: a name of :data:`consistentee.data.metrics.METRICS`.
        labels, predictions: [N].
        resamples: number of bootstrap samples.
        seed: makes it reproducible.
    """
    true, answers = np.asarray(labels), np.asarray(predictions)
    whole = score(metric, true, answers)
    if len(true) < 2:
        return whole, whole
    vectorised = metric == "accuracy"  # a mean over rows: one call for many resamples
    samples = ((true == answers).astype(float),) if vectorised else (true, answers)
    result = bootstrap(
        samples,
        np.mean if vectorised else lambda y, z: score(metric, y, z),
        paired=not vectorised,
        vectorized=vectorised,
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
