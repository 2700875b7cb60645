"""Methods against each other: whole curves in one number, and paired tests on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.analysis.curves import area_under_front, pareto_front
from benchmarks.analysis.frame import knobs_of
from benchmarks.analysis.results import FULL, MAJORITY, REFERENCES, Panel
from benchmarks.analysis.rows.choices import Choice, choose_point, reference_of, targets_of
from benchmarks.analysis.rows.instances import Answers, answers_of
from benchmarks.analysis.select import choose
from benchmarks.analysis.statistics import PairedTest, paired_test
from benchmarks.measure.intervals import can_resample, interval, mean_over_drawn_seeds, resampled_scores
from benchmarks.store.targets import WITHIN_ONE_POINT, Budget, Target
from consistentee.errors import UserError

CORE_METHOD = "consistentee"
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


@dataclass(frozen=True)
class Comparison:
    """A paired test between the operating points that two curves have for one target.

    Attributes:
        target: what both were chosen for.
        first, second: labels.
        seeds: the seeds that both have.
        difference: score of the first minus score of the second in the task's metric, averaged over seeds.
        interval: 95% paired bootstrap interval of that, over rows and seeds; None for a metric of ranks.
        seed: the seed of ``test``.
        test: which rows each has right, and McNemar's test, on one seed; None for a regression.
    """

    target: Target
    first: str
    second: str
    seeds: tuple[int, ...]
    difference: float
    interval: tuple[float, float] | None
    seed: int
    test: PairedTest | None


def curve_summaries(panel: Panel) -> list[CurveSummary]:
    """Summarise every curve of a panel but the full model's, which is a single point."""
    labels = [label for label, method in panel.methods.items() if method != FULL]
    return [panel.once(f"summary of {label}", partial(_summary, panel, label)) for label in labels]


def _summary(panel: Panel, label: str) -> CurveSummary:
    seeds = sorted({cell.record.seed for cell in panel.cells_of(label)})
    within = _mean_on_curve(panel, label, seeds, WITHIN_ONE_POINT)
    budgets = {share: _mean_on_curve(panel, label, seeds, Budget(layers_at_most=share)) for share in BUDGETS}
    return CurveSummary(
        label=label,
        layers_area=mean_layers_area(panel, label),
        flops_area=_mean_where_all([ratio_area(panel, label, seed, "flops_ratio") for seed in seeds]),
        time_area=_mean_where_all([ratio_area(panel, label, seed, TIME) for seed in seeds]),
        at_budgets={share: None if found is None else found[1] for share, found in budgets.items()},
        layers_within=None if within is None else within[0],
        score_within=None if within is None else within[1],
    )


def _mean_where_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _mean_on_curve(panel: Panel, label: str, seeds: Sequence[int], target: Target) -> tuple[float, float] | None:
    """Return the mean over seeds of (test layers, test score) at a target; None unless every seed meets it."""
    found = [point for seed in seeds if (point := _on_curve(panel, label, seed, target)) is not None]
    if len(found) < len(seeds):
        return None
    layers, score = np.mean(found, axis=0)
    return float(layers), float(score)


def mean_layers_area(panel: Panel, label: str) -> float:
    """Return the mean over seeds of :func:`layers_area`."""
    seeds = sorted({cell.record.seed for cell in panel.cells_of(label)})
    area: float = panel.once(
        f"area of {label}", lambda: float(np.mean([layers_area(panel, label, seed) for seed in seeds]))
    )
    return area


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


def paired_comparisons(panel: Panel) -> list[Comparison]:
    """Test the core method against every other one that shares a target with it, on the same test rows.

    Without the core method, the first curve is tested against the others.
    """
    methods = panel.methods
    curves = [label for label, method in methods.items() if method not in (FULL, *REFERENCES)]
    if len(curves) < 2:
        return []
    first = next((label for label in curves if methods[label] == CORE_METHOD), curves[0])
    others = [label for label in curves if label != first]
    shared = targets_of(panel.cells_of(first))
    found = [_compare(panel, target, first, second) for target in shared for second in others]
    return [comparison for comparison in found if comparison is not None]


def _compare(panel: Panel, target: Target, first: str, second: str) -> Comparison | None:
    pairs = [
        (one, other)
        for seed in sorted({cell.record.seed for cell in panel.cells_of(first)})
        if (one := _choice(panel, first, seed, target)) is not None
        and (other := _choice(panel, second, seed, target)) is not None
    ]
    if not pairs:
        return None
    try:
        answers = [(answers_of(one), answers_of(other)) for one, other in pairs]
    except UserError:  # predictions are gone: the tables still stand
        return None
    labels = answers[0][0].labels
    if any(not np.array_equal(labels, side.labels) for pair in answers for side in pair):
        return None  # other rows
    categorical = panel.metric not in ("pearson", "spearman")
    return Comparison(
        target=target,
        first=first,
        second=second,
        seeds=tuple(one.cell.record.seed for one, _ in pairs),
        difference=float(np.mean([_test_score(one) - _test_score(other) for one, other in pairs])),
        interval=_interval_of_difference(panel.metric, answers),
        seed=pairs[0][0].cell.record.seed,
        test=paired_test(*(side.predictions == labels for side in answers[0])) if categorical else None,
    )


def _choice(panel: Panel, label: str, seed: int, target: Target) -> Choice | None:
    cells = panel.cells_of(label, seed)
    return choose_point(cells, target, reference_of(panel, label, seed)) if cells else None


def _test_score(choice: Choice) -> float:
    return choice.point.test.scores[choice.cell.record.metric]


def _interval_of_difference(metric: str, answers: Sequence[tuple[Answers, Answers]]) -> tuple[float, float] | None:
    labels = answers[0][0].labels
    if not can_resample(metric, labels):
        return None
    both = [side.predictions for pair in answers for side in pair]
    scores = resampled_scores(metric, labels, both)
    return interval(mean_over_drawn_seeds(scores[:, ::2] - scores[:, 1::2]))
