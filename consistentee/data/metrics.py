"""Metrics of answers: GLUE's by scikit-learn and numpy, ROUGE by rouge-score, agreement with the full model."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.errors import unknown_name

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def _pearson(labels: ArrayLike, predictions: ArrayLike) -> float:
    if np.ptp(np.asarray(predictions)) == 0 or np.ptp(np.asarray(labels)) == 0:
        return 0.0  # undefined
    covariance = np.cov(np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float), ddof=0)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def _spearman(labels: ArrayLike, predictions: ArrayLike) -> float:
    return _pearson(_ranks(labels), _ranks(predictions))


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Compute ranks: the number of all smaller values plus half of that of equal ones."""
    _, place = np.unique(np.asarray(values), return_inverse=True)
    counts = np.bincount(place)
    return np.asarray((np.cumsum(counts) - counts / 2)[place], dtype=float)


def _of_sklearn(name: str, **options: Any) -> "Metric":
    def compute(labels: ArrayLike, predictions: ArrayLike) -> float:
        from sklearn import metrics  # takes half a second, which tables of finished results need not wait for

        return float(getattr(metrics, name)(labels, predictions, **options))

    return compute


Metric = Callable[[ArrayLike, ArrayLike], float]
METRICS: dict[str, Metric] = {
    "accuracy": _of_sklearn("accuracy_score"),
    "f1": _of_sklearn("f1_score", zero_division=0),
    "matthews": _of_sklearn("matthews_corrcoef"),
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Name -> function of (labels, predictions). All lie in [-1, 1]; higher is better."""


def score(metric: str, labels: Sequence[float] | NDArray, predictions: Sequence[float] | NDArray) -> float:
    """Compute a metric of ``predictions`` [N] against ``labels`` [N]. Raises UserError for an unknown name."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return METRICS[metric](labels, predictions)


TEXT_METRICS = ("rouge1", "rouge2", "rougeL")
"""F1 of shared words, shared word pairs, and the longest common subsequence of words; Lin, 2004, "ROUGE"."""


def rouge(
    references: Sequence[str], texts: Sequence[str], metrics: Sequence[str] = TEXT_METRICS
) -> dict[str, NDArray[np.float64]]:
    """Compute the F1 of every text [N] against its reference [N], in [0, 1], by metric: [N] each.

    Words are stemmed (Porter) and lower-cased and have ASCII letters and digits only; a text without words scores 0.
    Raises UserError for an unknown metric, ValueError for different numbers of texts and references.
    """
    for metric in metrics:
        if metric not in TEXT_METRICS:
            raise unknown_name("metric", metric, TEXT_METRICS)
    scorer = _scorer()
    scores = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {metric: np.array([score[metric].fmeasure for score in scores], dtype=np.float64) for metric in metrics}


@cache
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(TEXT_METRICS), use_stemmer=True)


def token_match(full: Sequence[ArrayLike], tokens: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Compute the share of places with the full model's token, of the longer text's places: [N], in [0, 1].

    Both arguments are int [tokens] for each text. Raises ValueError for different numbers of texts.
    """
    pairs = zip(full, tokens, strict=True)
    return np.array([_match(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs], dtype=np.float64)


def _match(full: NDArray, tokens: NDArray) -> float:
    shared, longer = sorted((len(full), len(tokens)))
    return float((full[:shared] == tokens[:shared]).sum()) / longer if longer else 1.0
