"""Is a method better than exits that look at nothing? Paired with static and random exits that run as many layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.panels.results import FULL, REFERENCES, role_of
from benchmarks.analysis.rows.choices import BaseChoice, DecodingChoice
from benchmarks.analysis.rows.texts import (
    GenerationPanel,
    GenerationRow,
    curve_rows,
    full_scores_by_prompt,
    mean_of,
    scores_by_prompt,
)
from benchmarks.measure.intervals import interval_of_mean
from benchmarks.store.generation_records import Mean
from consistentee.errors import UserError

REFERENCE_ROLES = ("static", "random")
_RESAMPLES = 2000


@dataclass(frozen=True)
class LayerComparison:
    """One operating point against one reference, in shares (0.01 is a point).

    Attributes:
        label, layers: the operating point's curve, and its average layers on test prompts.
        reference: label of the reference.
        match, score: token match, and the task's score, minus those of the reference at as many layers.
    """

    label: str
    layers: float
    reference: str
    match: Mean
    score: Mean


@dataclass(frozen=True)
class _Support:
    """What a reference reaches at some average layers: a score for every test prompt."""

    layers: float
    scores: NDArray[np.float64]


def compare_at_equal_layers(panel: GenerationPanel) -> list[LayerComparison]:
    """Compare every operating point of every competitor with the references; points below their range are left out.

    Points whose text is always the full model's are left out too, and all whose predictions cannot be read.
    """
    references = [label for label in panel.labels if role_of(panel.methods[label]) in REFERENCE_ROLES]
    competing = [label for label in panel.labels if role_of(panel.methods[label]) not in (FULL, *REFERENCES)]
    found = []
    for label in competing:
        for row in curve_rows(panel, label):
            if row.acceptance is None and row.speedups.average_layers < panel.num_layers:
                found += [compared for name in references if (compared := _compare(panel, row, name)) is not None]
    return found


def _compare(panel: GenerationPanel, row: GenerationRow, reference: str) -> LayerComparison | None:
    by_seed = [(choice, _choices(panel, reference, choice)) for choice in row.choices]
    try:
        match = [_difference(choice, others, "match") for choice, others in by_seed]
        score = [_difference(choice, others, panel.metric) for choice, others in by_seed]
    except UserError:
        return None
    matches, scores = [m for m in match if m is not None], [s for s in score if s is not None]
    if len(matches) < len(match) or not matches:
        return None
    return LayerComparison(row.label, row.speedups.average_layers, reference, mean_of(matches), mean_of(scores))


def _choices(panel: GenerationPanel, label: str, like: DecodingChoice) -> list[DecodingChoice]:
    """Return all operating points of a reference, of the same seed."""
    cells = panel.cells_of(label, like.cell.record.seed)
    return [BaseChoice(cell, point) for cell in cells for point in cell.record.operating_points]


def _difference(choice: DecodingChoice, reference: Sequence[DecodingChoice], column: str) -> Mean | None:
    layers = choice.point.average_layers
    full = _Support(float(choice.cell.record.num_layers), full_scores_by_prompt(choice.cell, column))
    supports = [_Support(other.point.average_layers, scores_by_prompt(other, column)) for other in reference]
    at_equal_layers = _interpolated([*supports, full], layers)
    if at_equal_layers is None:
        return None
    difference = scores_by_prompt(choice, column) - at_equal_layers
    interval = interval_of_mean(difference, resamples=_RESAMPLES, seed=0)
    return Mean(value=float(difference.mean()), interval=interval)


def _interpolated(supports: Sequence[_Support], layers: float) -> NDArray[np.float64] | None:
    """Return the scores between the two supports around ``layers``; None below the lowest."""
    below = [support for support in supports if support.layers <= layers]
    above = [support for support in supports if support.layers >= layers]
    if not below or not above:
        return None
    low, high = max(below, key=lambda s: s.layers), min(above, key=lambda s: s.layers)
    if high.layers == low.layers:
        return low.scores
    share = (layers - low.layers) / (high.layers - low.layers)
    return np.asarray((1 - share) * low.scores + share * high.scores)
