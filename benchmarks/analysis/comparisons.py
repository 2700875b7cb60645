"""Methods against each other: whole curves in one number, and paired tests on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.curves import area_under_front, cheapest_within, pareto_front
from benchmarks.analysis.results import FULL, MAJORITY, REFERENCES, Panel, StoredCell
from benchmarks.analysis.rows import TableRow, label_rows
from benchmarks.analysis.statistics import (
    Choice,
    PairedTest,
    choose,
    full_depth_score,
    paired_test,
    points_of,
    targets,
)
from benchmarks.harness.storage import read_predictions
from consistentee.errors import UserError

CORE_METHOD = "consistentee"


@dataclass(frozen=True)
class CurveSummary:
    """A whole curve in a few numbers, averaged over seeds.

    Attributes:
        label: the curve.
        layers_area: area under the score-layers front, see :func:`area_under_front`.
        time_area: area under the score-time front at batch 1; None if not timed.
        layers_within: test layers at the knob that loses at most a point on validation data, if one does.
        score_within: test score there.
    """

    label: str
    layers_area: float
    time_area: float | None
    layers_within: float | None
    score_within: float | None


@dataclass(frozen=True)
class Comparison:
    """A paired test between the operating points that two curves have for one target."""

    target: str
    first: str
    second: str
    seed: int
    test: PairedTest


def curve_summaries(panel: Panel) -> list[CurveSummary]:
    """Summarise every curve of a panel but the full model's, which is a single point."""
    return [_summary(panel, label) for label, method in panel.methods.items() if method != FULL]


def _summary(panel: Panel, label: str) -> CurveSummary:
    seeds = sorted({cell.record.seed for cell in panel.cells_of(label)})
    within = [_within_one_point(panel, label, seed) for seed in seeds]
    reached = [point for point in within if point is not None]
    everywhere = len(reached) == len(seeds)
    return CurveSummary(
        label=label,
        layers_area=float(np.mean([layers_area(panel, label, seed) for seed in seeds])),
        time_area=time_area(panel, label_rows(panel, label)),
        layers_within=float(np.mean([layers for layers, _ in reached])) if everywhere else None,
        score_within=float(np.mean([score for _, score in reached])) if everywhere else None,
    )


def layers_area(panel: Panel, label: str, seed: int) -> float:
    """Integrate the test scores of the knobs that are on the front of the validation data: area under score-layers."""
    cells = panel.cells_of(label, seed)
    chosen = pareto_front(*_curve(cells, "validation"))
    layers, scores = np.asarray(_curve(cells, "test"))[:, chosen]
    return area_under_front(layers, scores, lowest=1, highest=panel.num_layers, floor=blind_score(panel))


def blind_score(panel: Panel) -> float:
    """Return the test score of the most frequent class, where it was measured, else 0."""
    points = [point for cell in panel.cells_of_method(MAJORITY) for point in cell.record.operating_points]
    return points[0].test.scores[panel.metric] if points else 0.0


def _within_one_point(panel: Panel, label: str, seed: int) -> tuple[float, float] | None:
    """Return (test layers, test score) at the knob that stays within a point of the full model on validation."""
    cells = panel.cells_of(label, seed)
    full = [cell for cell in panel.cells_of_method(FULL) if cell.record.seed == seed]
    reference = max(full_depth_score(cell) for cell in full or cells)
    layers, scores = _curve(cells, "validation")
    index = cheapest_within(layers, scores, reference)
    if index is None:
        return None
    test_layers, test_scores = _curve(cells, "test")
    return test_layers[index], test_scores[index]


def _curve(cells: Sequence[StoredCell], split: str) -> tuple[list[float], list[float]]:
    layers: list[float] = []
    scores: list[float] = []
    for cell in cells:
        record = cell.record
        curve = record.curve_test if split == "test" else record.curve_validation
        more_layers, more_scores = points_of(curve, record.metric)
        layers += more_layers
        scores += more_scores
    return layers, scores


def time_area(panel: Panel, rows: Sequence[TableRow]) -> float | None:
    """Integrate over time as a share of the stock model's at batch 1, along timed rows; None if there are none."""
    timed = [row for row in rows if 1 in row.speedups.time_ratios]
    if not timed:
        return None
    shares = [1 / row.speedups.time_ratios[1] for row in timed]
    scores = [row.scores[panel.metric] for row in timed]
    return area_under_front(shares, scores, lowest=1 / panel.num_layers, highest=1, floor=blind_score(panel))


def paired_comparisons(panel: Panel) -> list[Comparison]:
    """Test the core method against every other one that shares a target with it, on the same test rows.

    Without the core method, the first curve is tested against the others. Regressions have no right or wrong
    rows, so they have no tests.
    """
    methods = panel.methods
    curves = [label for label, method in methods.items() if method not in (FULL, *REFERENCES)]
    if len(curves) < 2 or panel.metric in ("pearson", "spearman"):
        return []
    first = next((label for label in curves if methods[label] == CORE_METHOD), curves[0])
    seed = min(cell.record.seed for cell in panel.cells_of(first))
    comparisons = []
    for target in targets(panel.cells_of(first, seed)):
        for second in curves:
            pair = choose(panel.cells_of(first, seed), target), choose(panel.cells_of(second, seed), target)
            if second != first and pair[0] is not None and pair[1] is not None:
                comparisons += _compare(target, pair[0], pair[1])
    return comparisons


def _compare(target: str, first: Choice, second: Choice) -> list[Comparison]:
    try:
        test = paired_test(correct_rows(first), correct_rows(second))
    except (UserError, ValueError):  # predictions are gone, or of other rows: the tables still stand
        return []
    return [Comparison(target, first.cell.record.label, second.cell.record.label, first.cell.record.seed, test)]


def correct_rows(choice: Choice) -> NDArray[np.bool_]:
    """Return which test rows an operating point answers right: bool [N]."""
    index = choice.cell.record.operating_points.index(choice.point)
    predictions = read_predictions(choice.cell.folder).sort_values("row")
    return (predictions[f"prediction_{index}"] == predictions["label"]).to_numpy()
