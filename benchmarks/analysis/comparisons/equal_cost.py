"""Methods at exactly equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

A row takes the first knob with a fixed probability, whatever it says: a rule that anyone can run. What "the best knob
within a budget" hides, that a method without a knob just below it is scored far below it, cannot happen here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.results import FULL, Panel, StoredCell
from benchmarks.analysis.rows import predictions_of
from benchmarks.analysis.select import Mixture, Reach, mixture_at
from benchmarks.store.records import CurvePoint
from consistentee.data.metrics import score
from consistentee.errors import UserError


@dataclass(frozen=True)
class AtCost:
    """One curve at one budget, averaged over seeds.

    Attributes:
        label: the curve.
        score: of the mixture on test rows.
        points: score minus the full model's of the same seed, as a share (0.01 is a point); None without one.
        layers: average layers of the test rows: on validation rows they are the budget.
        reaches: what of the budget was reached, by seed.
    """

    label: str
    score: float
    points: float | None
    layers: float
    reaches: tuple[Reach, ...]


@dataclass(frozen=True)
class _Known:
    """One knob of one cell, on both splits."""

    cell: StoredCell
    validation: CurvePoint
    test: CurvePoint


def at_equal_cost(panel: Panel, label: str, speedup: float) -> AtCost:
    """Return what a curve reaches at L / ``speedup`` layers."""
    return panel.once(f"{label} at {speedup:g} times the speed", lambda: _at_equal_cost(panel, label, speedup))


def _at_equal_cost(panel: Panel, label: str, speedup: float) -> AtCost:
    scores, points, layers, reaches = [], [], [], []
    for seed in sorted({cell.record.seed for cell in panel.cells_of(label)}):
        known = _points(panel.cells_of(label, seed))
        mixture = mixture_at(
            panel.num_layers / speedup,
            [point.validation.average_layers for point in known],
            [point.validation.quality(panel.metric) for point in known],
        )
        scores.append(_test_score(panel.metric, known, mixture))
        layers.append(mixture.of([point.test.average_layers for point in known]))
        reaches.append(mixture.reach)
        full = _full_score(panel, seed)
        points += [scores[-1] - full] if full is not None else []
    return AtCost(
        label=label,
        score=float(np.mean(scores)),
        points=float(np.mean(points)) if len(points) == len(scores) else None,
        layers=float(np.mean(layers)),
        reaches=tuple(reaches),
    )


def _points(cells: Sequence[StoredCell]) -> list[_Known]:
    """Return every knob of every cell of a grid."""
    return [
        _Known(cell, validation, test)
        for cell in cells
        for validation, test in zip(cell.record.curve_validation, cell.record.curve_test, strict=True)
    ]


def _full_score(panel: Panel, seed: int) -> float | None:
    """Return the full model's test score with a seed; the mean of its seeds where it was not run with this one."""
    full = panel.cells_of_method(FULL)
    own = [cell for cell in full if cell.record.seed == seed] or full
    return float(np.mean([cell.record.curve_test[-1].scores[panel.metric] for cell in own])) if own else None


def _test_score(metric: str, known: Sequence[_Known], mixture: Mixture) -> float:
    """Score a mixture: as a weighted sample where both knobs' answers are known, else as the mean of two scores.

    For a mean over rows, such as accuracy, both are the same.
    """
    linear = mixture.of([point.test.scores[metric] for point in known])
    if metric == "accuracy" or mixture.first == mixture.second:
        return linear
    both = [_answers(known[index]) for index in (mixture.first, mixture.second)]
    first, second = both
    if first is None or second is None:
        return linear
    (labels, answers), (other_labels, other_answers) = first, second
    shares = np.repeat([mixture.weight, 1 - mixture.weight], [len(labels), len(other_labels)])
    return score(metric, np.concatenate([labels, other_labels]), np.concatenate([answers, other_answers]), shares)


def _answers(point: _Known) -> tuple[NDArray, NDArray] | None:
    """Return the labels and answers of the test rows at a knob; None unless it is one whose answers were kept."""
    number = next((i for i, p in enumerate(point.cell.record.operating_points) if p.knob == point.test.knob), None)
    if number is None:
        return None
    try:
        columns = predictions_of(point.cell.rows)
    except UserError:  # predictions are gone: the curve still stands
        return None
    return columns["label"], columns[f"prediction_{number}"]
