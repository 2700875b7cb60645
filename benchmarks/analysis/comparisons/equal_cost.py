"""Methods at exactly equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

A row takes the first knob with a fixed probability, whatever it says: a rule that anyone can run. What "the best knob
within a budget" hides, that a method without a knob just below it is scored far below it, cannot happen here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.frame import knobs_of
from benchmarks.analysis.results import FULL, Panel
from benchmarks.analysis.rows.instances import hull_answers, predictions_of
from benchmarks.analysis.select import Mixture, Reach, concave_hull, mixture_at
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
        time_ratios: batch size -> the stock model's time / the mixture's, geometric mean of the seeds; without those
            at which some knob of the mixture was not timed.
        flops_ratio: the same by operations; None if those of some knob were not counted.
    """

    label: str
    score: float
    points: float | None
    layers: float
    reaches: tuple[Reach, ...]
    time_ratios: dict[int, float] = field(default_factory=dict)
    flops_ratio: float | None = None


def at_equal_cost(panel: Panel, label: str, speedup: float) -> AtCost:
    """Return what a curve reaches at L / ``speedup`` layers."""
    return panel.once(f"{label} at {speedup:g} times the speed", lambda: _at_equal_cost(panel, label, speedup))


def _at_equal_cost(panel: Panel, label: str, speedup: float) -> AtCost:
    found = mixtures_of(panel, label, speedup)
    scores = [mixed_score(panel, one.knobs, one.mixture) for one in found]
    full = [full_score(panel, one.seed) for one in found]
    points = [own - reference for own, reference in zip(scores, full, strict=True) if reference is not None]
    return AtCost(
        label=label,
        score=float(np.mean(scores)),
        points=float(np.mean(points)) if len(points) == len(scores) else None,
        layers=float(np.mean([one.mixture.of(one.knobs["layers"]) for one in found])),
        reaches=tuple(one.mixture.reach for one in found),
        time_ratios={
            size: ratio for size in panel.batch_sizes if (ratio := _ratio(found, f"speedup_b{size}")) is not None
        },
        flops_ratio=_ratio(found, "flops_ratio"),
    )


def curve_at_equal_cost(panel: Panel, label: str) -> list[AtCost]:
    """Return the whole curve, a grid's cells as one: what it reaches at the cost of every vertex of its hull.

    Fewest layers first. Between them it is straight; with several seeds, all of them are mixed to the vertices of each.
    """
    seeds = sorted({cell.record.seed for cell in panel.cells_of(label)})
    hulls = [_hull_costs(knobs_of(panel, label, seed)) for seed in seeds]
    return [at_equal_cost(panel, label, panel.num_layers / cost) for cost in np.unique(np.concatenate(hulls)).tolist()]


def _hull_costs(knobs: "pd.DataFrame") -> NDArray[np.float64]:
    costs = knobs["validation_layers"].to_numpy(float)
    return costs[concave_hull(costs, knobs["validation_quality"])]


@dataclass(frozen=True)
class OfSeed:
    """A mixture of one curve and seed, and the knobs that it is made of."""

    seed: int
    knobs: "pd.DataFrame"
    mixture: Mixture


def mixtures_of(panel: Panel, label: str, speedup: float) -> list[OfSeed]:
    """Return, seed by seed, the mixture that costs L / ``speedup`` layers on validation rows."""
    return panel.once(f"mixtures of {label} at {speedup:g}", lambda: list(_mixtures(panel, label, speedup)))


def _mixtures(panel: Panel, label: str, speedup: float) -> Iterator[OfSeed]:
    for seed in sorted({cell.record.seed for cell in panel.cells_of(label)}):
        knobs = knobs_of(panel, label, seed)
        budget = panel.num_layers / speedup
        yield OfSeed(seed, knobs, mixture_at(budget, knobs["validation_layers"], knobs["validation_quality"]))


def _ratio(found: Sequence[OfSeed], column: str) -> float | None:
    """Mix the costs of two knobs, as shares of the stock model's; None if one was not measured.

    Args:
        found: one mixture a seed; their geometric mean is returned.
        column: of the long table, the stock model's cost / a knob's.
    """
    if not all(column in one.knobs for one in found):
        return None
    shares = [[1 / one.knobs[column].iloc[i] for i in (one.mixture.first, one.mixture.second)] for one in found]
    weights = np.array([one.mixture.weight for one in found])
    mixed = np.sum(np.stack([weights, 1 - weights], axis=1) * np.array(shares), axis=1)
    return None if np.isnan(mixed).any() else float(np.exp(-np.log(mixed).mean()))


def full_score(panel: Panel, seed: int) -> float | None:
    """Return the full model's test score with a seed; the mean of its seeds where it was not run with this one."""
    full = panel.cells_of_method(FULL)
    own = [cell for cell in full if cell.record.seed == seed] or full
    return float(np.mean([cell.record.curve_test[-1].scores[panel.metric] for cell in own])) if own else None


def mixed_score(panel: Panel, knobs: "pd.DataFrame", mixture: Mixture) -> float:
    """Score a mixture: as a weighted sample where both knobs' answers are known, else as the mean of two scores.

    For a mean over rows, such as accuracy, both are the same.
    """
    linear = mixture.of(knobs["quality"])
    if panel.metric == "accuracy" or mixture.first == mixture.second:
        return linear
    first, second = (answers_at(panel, knobs.iloc[index]) for index in (mixture.first, mixture.second))
    if first is None or second is None:
        return linear
    (labels, answers), (other_labels, other_answers) = first, second
    shares = np.repeat([mixture.weight, 1 - mixture.weight], [len(labels), len(other_labels)])
    both_labels, both_answers = np.concatenate([labels, other_labels]), np.concatenate([answers, other_answers])
    return score(panel.metric, both_labels, both_answers, shares)


def answers_at(panel: Panel, knob: "pd.Series") -> tuple[NDArray, NDArray] | None:
    """Return the labels and answers of the test rows at a knob; None unless it is one whose answers were kept."""
    point, hull = (knob.get(name, np.nan) for name in ("point", "hull"))
    if np.isnan(point) and np.isnan(hull):
        return None
    try:
        columns = predictions_of(panel.cells[knob["cell"]].rows)
        answers = hull_answers(columns, int(hull)) if np.isnan(point) else columns[f"prediction_{point:.0f}"]
    except UserError:  # predictions are gone: the curve still stands
        return None
    return columns["label"], answers
