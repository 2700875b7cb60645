"""The tables of methods at equal cost: means over tasks at every budget, and task by task at the middle one."""

from collections.abc import Sequence

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost
from benchmarks.analysis.comparisons.ranking import block_name, compared_panels, mean_ranks
from benchmarks.analysis.results import FULL, MAJORITY, ORACLE, Panel
from benchmarks.analysis.select import SPEEDUPS, Reach
from benchmarks.analysis.tables.overall import task_headings
from benchmarks.analysis.tables.text import MISSING, TextTable

MIDDLE = 2.0
"""The speed-up of the table by task."""

_MARKS = {Reach.OVER: "†", Reach.UNDER: "‡"}

_NOTE = (
    "Points: test score minus the full model's, mean of the seeds. At a speed-up s, the two knobs of the concave hull "
    "of all validation points (of all cells of a grid) between which L / s layers lie are mixed to cost exactly that; "
    "the same mixture is scored on test rows."
)
OVER_NOTE = "†: even the cheapest knob costs more"
UNDER_NOTE = "; ‡: even the best knob costs less, and it stands here."


def equal_cost_tables(panels: Sequence[Panel]) -> list[TextTable]:
    """Return the means over tasks where there are several, and the table by task; nothing without the full model.

    Means are over the tasks that (nearly) all methods are defined for, see ``compared_panels``.
    """
    known = [panel for panel in panels if FULL in panel.methods.values()]
    compared = compared_panels(known)
    if not known:
        return []
    labels = _labels(known, compared)
    by_task = _by_task(known, labels)
    return [_means(compared, labels), by_task] if len(compared) > 1 else [by_task]


def _labels(panels: Sequence[Panel], compared: Sequence[Panel]) -> list[str]:
    """Return the curves, the best mean at the middle budget first, then those that some compared task lacks."""
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    labels = [label for label, method in methods.items() if method not in (FULL, ORACLE, MAJORITY)]
    order = {label: _mean(_everywhere(compared, label, MIDDLE)) for label in labels}
    return sorted(labels, key=lambda label: -order[label])


def _everywhere(panels: Sequence[Panel], label: str, speedup: float) -> list[AtCost]:
    """Return a curve on every task; nothing where some task lacks it."""
    if any(label not in panel.methods for panel in panels):
        return []
    return [at_equal_cost(panel, label, speedup) for panel in panels]


def _mean(found: Sequence[AtCost]) -> float:
    """Return the mean of the points; minus infinity of nothing."""
    return float(np.mean([one.points for one in found])) if found else -np.inf


def _means(panels: Sequence[Panel], labels: Sequence[str]) -> TextTable:
    columns = [_mean_columns(panels, labels, speedup) for speedup in SPEEDUPS]
    return TextTable(
        title=f"Points against the full model at equal cost, mean of {len(panels)} tasks",
        headings=("method", *(h for s in SPEEDUPS for h in (f"at {s:g}x", f"rank {s:g}x", f"layers {s:g}x"))),
        cells=tuple((label, *(cell for column in columns for cell in column[label])) for label in labels),
        notes=(
            f"Tasks: {', '.join(map(block_name, panels))}.",
            _NOTE,
            "Rank: mean over tasks, 1 is best, among the methods that all tasks have. Layers: of the test rows; fewer "
            "than the budget where even the best knob of some task costs less.",
            f"{OVER_NOTE} on some task, and it stands there.",
        ),
        words=("method",),
    )


def _mean_columns(panels: Sequence[Panel], labels: Sequence[str], speedup: float) -> dict[str, tuple[str, ...]]:
    """Return the cells of one budget by label: points, mean rank, layers."""
    found = {label: _everywhere(panels, label, speedup) for label in labels}
    complete = [label for label in labels if found[label]]
    scores = np.array([[one.score for one in found[label]] for label in complete]).T
    ranks = dict(zip(complete, mean_ranks(scores), strict=True)) if complete else {}
    return {
        label: (
            f"{100 * _mean(found[label]):+.1f}{reach_marks(found[label], [Reach.OVER])}",
            f"{ranks[label]:.1f}",
            f"{np.mean([one.layers for one in found[label]]):.2f}",
        )
        if found[label]
        else (MISSING,) * 3
        for label in labels
    }


def reach_marks(found: Sequence[AtCost], marked: Sequence[Reach] = tuple(_MARKS)) -> str:
    """Return the marks of what was reached with some seed on some task; the notes above explain them."""
    reaches = {reach for one in found for reach in one.reaches}
    return "".join(_MARKS[reach] for reach in marked if reach in reaches)


def _by_task(panels: Sequence[Panel], labels: Sequence[str]) -> TextTable:
    return TextTable(
        title=f"Points against the full model at {MIDDLE:g}x, task by task",
        headings=("method", *task_headings(panels)),
        cells=tuple((label, *(_task_cell(panel, label) for panel in panels)) for label in labels),
        notes=(OVER_NOTE + UNDER_NOTE,),
        words=("method",),
    )


def _task_cell(panel: Panel, label: str) -> str:
    if label not in panel.methods:
        return MISSING
    found = at_equal_cost(panel, label, MIDDLE)
    return MISSING if found.points is None else f"{100 * found.points:+.1f}{reach_marks([found])}"
