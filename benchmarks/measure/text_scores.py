"""Scores of texts, prompt by prompt, and means over prompts with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.statistics import interval_of_mean
from benchmarks.store.generation_records import Mean
from consistentee.data.metrics import rouge, token_match
from consistentee.engine.generate import Generations
from consistentee.methods.calibration import textual_losses


@dataclass(frozen=True)
class TextScores:
    """Scores of texts, prompt by prompt: [N] each, in [0, 1].

    Attributes:
        reference: against the references, by metric.
        full_text: ROUGE-L against the full model's texts; 1 for equal texts.
        match: share of places with the full model's token.
    """

    reference: dict[str, NDArray[np.float64]]
    full_text: NDArray[np.float64]
    match: NDArray[np.float64]


def score_generations(
    written: Generations, full: Generations, references: Sequence[str], metrics: Sequence[str]
) -> TextScores:
    """Score texts against references and against the full model's texts."""
    return TextScores(
        reference=rouge(references, written.texts, metrics),
        full_text=1 - textual_losses(written.texts, full.texts),
        match=token_match(full.tokens, written.tokens),
    )


def mean_with_interval(values: NDArray[np.float64], *, resamples: int, seed: int) -> Mean:
    """Compute the mean of scores [N] with its 95% percentile bootstrap interval over prompts."""
    return Mean(value=float(values.mean()), interval=interval_of_mean(values, resamples=resamples, seed=seed))
