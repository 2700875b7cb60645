"""Methods at exactly equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

A row takes the first knob with a fixed probability, whatever it says: a rule that anyone can run. What "the best knob
within a budget" hides, that a method without a knob just below it is scored far below it, cannot happen here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.frame import knobs_of
from benchmarks.analysis.results import FULL, Panel
from benchmarks.analysis.rows.instances import predictions_of
from benchmarks.analysis.select import Mixture, Reach, mixture_at
from consistentee.data.metrics import score
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


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


def at_equal_cost(panel: Panel, label: str, speedup: float) -> AtCost:
    """Return what a curve reaches at L / ``speedup`` layers."""
    return panel.once(f"{label} at {speedup:g} times the speed", lambda: _at_equal_cost(panel, label, speedup))


def _at_equal_cost(panel: Panel, label: str, speedup: float) -> AtCost:
    scores, points, layers, reaches = [], [], [], []
    for seed in sorted({cell.record.seed for cell in panel.cells_of(label)}):
        knobs = knobs_of(panel, label, seed)
        mixture = mixture_at(panel.num_layers / speedup, knobs["validation_layers"], knobs["validation_quality"])
        scores.append(_test_score(panel, knobs, mixture))
        layers.append(mixture.of(knobs["layers"]))
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


def _full_score(panel: Panel, seed: int) -> float | None:
    """Return the full model's test score with a seed; the mean of its seeds where it was not run with this one."""
    full = panel.cells_of_method(FULL)
    own = [cell for cell in full if cell.record.seed == seed] or full
    return float(np.mean([cell.record.curve_test[-1].scores[panel.metric] for cell in own])) if own else None


def _test_score(panel: Panel, knobs: "pd.DataFrame", mixture: Mixture) -> float:
    """Score a mixture: as a weighted sample where both knobs' answers are known, else as the mean of two scores.

    For a mean over rows, such as accuracy, both are the same.
    """
    linear = mixture.of(knobs["quality"])
    if panel.metric == "accuracy" or mixture.first == mixture.second:
        return linear
    first, second = (_answers(panel, knobs.iloc[index]) for index in (mixture.first, mixture.second))
    if first is None or second is None:
        return linear
    (labels, answers), (other_labels, other_answers) = first, second
    shares = np.repeat([mixture.weight, 1 - mixture.weight], [len(labels), len(other_labels)])
    both_labels, both_answers = np.concatenate([labels, other_labels]), np.concatenate([answers, other_answers])
    return score(panel.metric, both_labels, both_answers, shares)


def _answers(panel: Panel, knob: "pd.Series") -> tuple[NDArray, NDArray] | None:
    """Return the labels and answers of the test rows at a knob; None unless it is one whose answers were kept."""
    if np.isnan(knob.get("point", np.nan)):
        return None
    try:
        columns = predictions_of(panel.cells[knob["cell"]].rows)
    except UserError:  # predictions are gone: the curve still stands
        return None
    return columns["label"], columns[f"prediction_{knob['point']:.0f}"]
