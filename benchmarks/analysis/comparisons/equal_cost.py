"""Methods at exactly equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

A row takes the first knob with a fixed probability, whatever it says: a rule that anyone can run. What "the best knob
within a budget" hides, that a method without a knob just below it is scored far below it, cannot happen here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.frame import knobs_of
from benchmarks.analysis.results import FULL, Panel
from benchmarks.analysis.rows.instances import hull_answers, predictions_of
from benchmarks.analysis.select import Mixture, Reach, mixture_at
from benchmarks.measure.intervals import can_resample, interval, mean_over_drawn_seeds, resampled_mixtures
from consistentee.data.metrics import score
from consistentee.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    for seed, knobs, mixture in _mixtures(panel, label, speedup):
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


def _mixtures(panel: Panel, label: str, speedup: float) -> "Iterator[tuple[int, pd.DataFrame, Mixture]]":
    """Yield seed, knobs and the mixture that costs L / ``speedup`` layers on validation rows."""
    for seed in sorted({cell.record.seed for cell in panel.cells_of(label)}):
        knobs = knobs_of(panel, label, seed)
        budget = panel.num_layers / speedup
        yield seed, knobs, mixture_at(budget, knobs["validation_layers"], knobs["validation_quality"])


def interval_at_equal_cost(panel: Panel, label: str, speedup: float) -> tuple[float, float] | None:
    """Return the 95% paired bootstrap interval of :attr:`AtCost.points`, over rows and, of several, over seeds.

    None unless with every seed the answers of both knobs and of the full model were kept, row by row, and for a score
    of ranks.
    """
    mixed = [_mixed_answers(panel, knobs, mixture) for _, knobs, mixture in _mixtures(panel, label, speedup)]
    full = [_full_answers(panel, seed) for seed, _, _ in _mixtures(panel, label, speedup)]
    known = [one for one in (*mixed, *full) if one is not None]
    labels = known[0][0] if known else np.empty(0)
    if len(known) < len(mixed) + len(full) or not can_resample(panel.metric, labels):
        return None
    if not all(np.array_equal(labels, others) for others, _, _ in known):
        return None  # other rows
    scores = resampled_mixtures(
        panel.metric, labels, [answers for _, answers, _ in known], [shares for _, _, shares in known]
    )
    ours, reference = np.hsplit(scores, 2)
    return interval(mean_over_drawn_seeds(ours - reference))


_MixedAnswers: TypeAlias = tuple[NDArray, NDArray, tuple[float, float]]
"""Labels [N], answers of two rules [2, N], and the share of each."""


def _mixed_answers(panel: Panel, knobs: "pd.DataFrame", mixture: Mixture) -> _MixedAnswers | None:
    sides = [_answers(panel, knobs.iloc[index]) for index in (mixture.first, mixture.second)]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides) or not np.array_equal(known[0][0], known[1][0]):
        return None
    return known[0][0], np.stack([answers for _, answers in known]), (mixture.weight, 1 - mixture.weight)


def _full_answers(panel: Panel, seed: int) -> _MixedAnswers | None:
    """Return the full model's answers with a seed, as a mixture of it with itself."""
    label = next((label for label, method in panel.methods.items() if method == FULL), None)
    if label is None or not panel.cells_of(label, seed):
        return None
    knobs = knobs_of(panel, label, seed)
    latest = len(knobs) - 1
    return _mixed_answers(panel, knobs, Mixture(latest, latest, 1.0))


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
    point, hull = (knob.get(name, np.nan) for name in ("point", "hull"))
    if np.isnan(point) and np.isnan(hull):
        return None
    try:
        columns = predictions_of(panel.cells[knob["cell"]].rows)
        answers = columns[f"prediction_{point:.0f}"] if np.isnan(hull) else hull_answers(columns, int(hull))
    except UserError:  # predictions are gone: the curve still stands
        return None
    return columns["label"], answers
