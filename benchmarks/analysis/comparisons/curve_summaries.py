"""Whole curves in a few numbers: areas under them, and what they reach within budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.analysis.panels.curves import area_under_front, pareto_front
from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.results import FULL, MAJORITY, Panel
from benchmarks.analysis.panels.select import choose
from benchmarks.analysis.rows.choices import reference_of
from benchmarks.analysis.rows.frame import knobs_of
from benchmarks.specs.targets import WITHIN_ONE_POINT, Budget, Target

TIME = "speedup_b1"
"""The column of the long table by which costs in time are compared: at batch size 1."""
BUDGETS = (0.25, 1 / 3, 0.5, 0.75)
"""Shares of the layers at which whole curves are read."""


@dataclass(frozen=True)
class CurveSummary:
    """A whole curve in a few numbers, averaged over seeds.

    Attributes:
        label: the curve.
        layers_area: area under the score-layers front, see :func:`area_under_front`.
        flops_area: area under the score-FLOPs front of the operating points.
        time_area: area under the score-time front at batch 1; None if not timed.
        at_budgets: for each share of the layers in :data:`BUDGETS`, the test score of the knob that scores best on
            validation data within that share there; None if no knob is.
        layers_within: test layers at the knob that loses at most a point on validation data, if one does.
        score_within: test score there.
    """

    label: str
    layers_area: float
    flops_area: float | None
    time_area: float | None
    at_budgets: dict[float, float | None]
    layers_within: float | None
    score_within: float | None


def curve_summaries(panel: Panel) -> list[CurveSummary]:
    """Summarise every curve of a panel but the full model's, which is a single point."""
    labels = [label for label, method in panel.methods.items() if method != FULL]
    return [panel.once(f"summary of {label}", partial(_summary, panel, label)) for label in labels]


def _summary(panel: Panel, label: str) -> CurveSummary:
    seeds = panel.seeds_of(label)
    within = _mean_on_curve(panel, label, seeds, WITHIN_ONE_POINT)
    budgets = {share: _mean_on_curve(panel, label, seeds, Budget(layers_at_most=share)) for share in BUDGETS}
    return CurveSummary(
        label=label,
        layers_area=mean_layers_area(panel, label),
        flops_area=mean_of_all([ratio_area(panel, label, seed, "flops_ratio") for seed in seeds]),
        time_area=mean_of_all([ratio_area(panel, label, seed, TIME) for seed in seeds]),
        at_budgets={share: None if found is None else found[1] for share, found in budgets.items()},
        layers_within=None if within is None else within[0],
        score_within=None if within is None else within[1],
    )


def _mean_on_curve(panel: Panel, label: str, seeds: Sequence[int], target: Target) -> tuple[float, float] | None:
    """Return the mean over seeds of (test layers, test score) at a target; None unless every seed meets it."""
    found = [point for seed in seeds if (point := _on_curve(panel, label, seed, target)) is not None]
    if len(found) < len(seeds):
        return None
    layers, score = np.mean(found, axis=0)
    return float(layers), float(score)


def mean_layers_area(panel: Panel, label: str) -> float:
    """Return the mean over seeds of :func:`layers_area`."""
    return panel.once(
        f"area of {label}",
        lambda: float(np.mean([layers_area(panel, label, seed) for seed in panel.seeds_of(label)])),
    )


def layers_area(panel: Panel, label: str, seed: int) -> float:
    """Integrate the test scores of the knobs that are on the front of the validation data: area under score-layers."""
    knobs = knobs_of(panel, label, seed)
    front = knobs.iloc[pareto_front(knobs["validation_layers"], knobs["validation_quality"])]
    return area_under_front(
        front["layers"], front["quality"], lowest=1, highest=panel.num_layers, floor=blind_score(panel)
    )


def blind_score(panel: Panel) -> float:
    """Return the test score of the most frequent class, where it was measured, else 0."""
    points = [point for cell in panel.cells_of_method(MAJORITY) for point in cell.record.operating_points]
    return points[0].test.scores[panel.metric] if points else 0.0


def _on_curve(panel: Panel, label: str, seed: int, target: Target) -> tuple[float, float] | None:
    """Return (test layers, test score) at the knob of the whole curve that meets a target on validation data."""
    knobs = knobs_of(panel, label, seed)
    index = choose(
        target,
        knobs["validation_layers"],
        knobs["validation_quality"],
        num_layers=panel.num_layers,
        reference=reference_of(panel, label, seed),
    )
    return None if index is None else (knobs["layers"].iloc[index], knobs["quality"].iloc[index])


def ratio_area(panel: Panel, label: str, seed: int, ratio: str) -> float | None:
    """Integrate test scores over cost as a share of the stock model's, along operating points; None if not measured.

    As for layers, only points on the front of the validation data are joined.

    Args:
        panel, label, seed: the curve.
        ratio: a column of the long table, the stock model's cost / a point's: ``flops_ratio``, ``speedup_b1``.
    """
    knobs = knobs_of(panel, label, seed)
    known = knobs[knobs[ratio].notna()] if ratio in knobs else knobs[:0]
    if known.empty:
        return None
    front = known.iloc[pareto_front(known["validation_layers"], known["validation_quality"])]
    shares = 1 / front[ratio]
    return area_under_front(shares, front["quality"], lowest=1 / panel.num_layers, highest=1, floor=blind_score(panel))
