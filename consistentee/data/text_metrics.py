"""Metrics of texts: ROUGE, computed by rouge-score, and agreement with the full model's tokens."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.errors import unknown_name

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

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

    Args:
        full: the full model's new tokens, int [tokens] for each text.
        tokens: those of the run to compare.

    Raises:
        ValueError: for different numbers of texts.
    """
    pairs = zip(full, tokens, strict=True)
    return np.array([_match(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs], dtype=np.float64)


def _match(full: NDArray, tokens: NDArray) -> float:
    shared, longer = sorted((len(full), len(tokens)))
    return float((full[:shared] == tokens[:shared]).sum()) / longer if longer else 1.0
