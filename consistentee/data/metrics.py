"""The scores of the tasks, as GLUE defines them. The arithmetic is scikit-learn's and scipy's."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from consistentee.errors import unknown_name


def _correlation(statistic: Callable[..., tuple[float, float]], labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return a correlation, and 0 where it is undefined because one side is constant."""
    if np.ptp(np.asarray(predictions)) == 0 or np.ptp(np.asarray(labels)) == 0:
        return 0.0
    return float(statistic(labels, predictions)[0])


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(f1_score(labels, predictions, zero_division=0)),
    "matthews": lambda labels, predictions: float(matthews_corrcoef(labels, predictions)),
    "pearson": lambda labels, predictions: _correlation(pearsonr, labels, predictions),
    "spearman": lambda labels, predictions: _correlation(spearmanr, labels, predictions),
}
"""Name -> function of (labels, predictions). All lie in [-1, 1]; higher is better."""


def score(metric: str, labels: Sequence[float] | NDArray, predictions: Sequence[float] | NDArray) -> float:
    """Return one metric of ``predictions`` [N] against ``labels`` [N]. Raises UserError for an unknown name."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return METRICS[metric](labels, predictions)
