"""Metrics of answers: those of GLUE, ROUGE (by rouge-score, of the extra ``bench``), agreement with the full model."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.errors import unknown_name
from consistentee.extras import check_extra

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


def _accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def _f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Compute the F1 of class 1; 0 if no row is of it. Raises ValueError for more than two classes."""
    true, answers = np.asarray(labels), np.asarray(predictions)
    if not np.isin([true, answers], (0, 1)).all():
        raise ValueError("F1 is defined for classes 0 and 1")
    return float(2 * np.sum(true * answers) / max(np.sum(true + answers), 1))


def _matthews(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Compute Matthews' correlation of any number of classes (Gorodkin, 2004); 0 if either has one class alone."""
    _, numbers = np.unique([np.asarray(labels), np.asarray(predictions)], return_inverse=True)
    true, answers = numbers.reshape(2, -1)
    rows, right, classes = len(true), np.sum(true == answers), numbers.max() + 1
    of_true, of_answers = (np.bincount(one, minlength=classes).astype(float) for one in (true, answers))
    spreads = (rows**2 - of_true @ of_true) * (rows**2 - of_answers @ of_answers)
    return float((right * rows - of_true @ of_answers) / np.sqrt(spreads)) if spreads else 0.0


Metric = Callable[[ArrayLike, ArrayLike], float]
METRICS: dict[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
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


def rouge_to_full(full: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
    """Compute the ROUGE-L of every text to the full model's: [N]; 1 for equal texts, those without words too.

    CALM's textual consistency (Schuster et al., NeurIPS 2022, section 4) is 1 minus this.
    """
    equal = [text == other for text, other in zip(texts, full, strict=True)]
    return np.where(equal, 1.0, rouge(full, texts, ["rougeL"])["rougeL"])


@cache
def _scorer() -> "RougeScorer":
    check_extra("bench", "ROUGE")
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
