"""The headline: what every method reaches within half of the layers, in one row a method."""

from collections.abc import Sequence

import numpy as np

from benchmarks.analysis.comparisons.ranking import block_name, compared_panels
from benchmarks.analysis.comparisons.static_gains import STATIC, mean_gain, static_gains
from benchmarks.analysis.panels.means import geometric_mean_of_all
from benchmarks.analysis.panels.results import FULL, MAJORITY, ORACLE, Panel
from benchmarks.analysis.rows.instances import row_for_half
from benchmarks.analysis.tables.columns import number
from benchmarks.analysis.tables.equal_cost import contrast_tables, equal_cost_tables
from benchmarks.analysis.tables.overall import task_headings
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.specs.targets import HALF

_WITHIN = f"within {100 * HALF.layers_at_most:g}% of the layers"


def headline_tables(panels: Sequence[Panel]) -> list[TextTable]:
    """Return the tables at equal cost; of several tasks tests, and those at the best knob within half of the layers."""
    compared = compared_panels(panels)
    at_best_knob = [headline_table(compared), half_table(panels)] if len(compared) > 1 else []
    return [*equal_cost_tables(panels), *contrast_tables(panels), *at_best_knob]


def headline_table(panels: Sequence[Panel]) -> TextTable:
    """Return means over tasks, one row a method: score, layers, speed-up and points over a static exit.

    Args:
        panels: tasks that (nearly) all methods are defined for, see ``compared_panels``.
    """
    labels = _labels_by_gain(panels)
    sizes = sorted({size for panel in panels for size in panel.batch_sizes})
    return TextTable(
        title=f"Means over {len(panels)} tasks, {_WITHIN}",
        headings=(
            "method",
            "score %",
            "layers saved %",
            *(f"speed-up b{size}" for size in sizes),
            "points over static",
            "tasks above / below",
        ),
        cells=tuple((label, *_headline_cells(panels, label, sizes)) for label in labels),
        notes=(
            f"Tasks: {', '.join(map(block_name, panels))}.",
            "Means of the tasks, of speed-up the geometric one, each at the knob chosen on validation data for half of "
            "the layers, on test rows. Score: the task's metric. Speed-up: stock model / method by the clock, "
            "b = batch size.",
            "Points over static: score minus that of a static exit at equal average layers; above / below: tasks where "
            "its 95% paired bootstrap interval lies above or below 0, not corrected for their number.",
        ),
        words=("method",),
    )


def _labels_by_gain(panels: Sequence[Panel]) -> list[str]:
    """Return the curves: the full model, then the best mean over static exits first, then what has no such mean."""
    seen = dict.fromkeys(label for panel in panels for label in panel.labels)
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    labels = [label for label in seen if methods[label] not in (ORACLE, MAJORITY)]
    gains = {label: _mean_gain(panels, label) for label in labels}
    means = {label: -np.inf if gain is None else gain for label, gain in gains.items()}
    return sorted(labels, key=lambda label: (methods[label] != FULL, -means[label]))


def _mean_gain(panels: Sequence[Panel], label: str) -> float | None:
    if all(panel.methods.get(label) == STATIC for panel in panels):
        return 0.0
    return mean_gain([static_gains(panel).get(label) for panel in panels])


def _headline_cells(panels: Sequence[Panel], label: str, sizes: Sequence[int]) -> tuple[str, ...]:
    found = [(panel, row_for_half(panel, label)) for panel in panels if label in panel.methods]
    rows = [(panel, row) for panel, row in found if row is not None]
    if len(rows) < len(panels):
        return (MISSING,) * (len(sizes) + 4)
    signs = [gains[label].beyond_noise for gains in map(static_gains, panels) if label in gains]
    mean = _mean_gain(panels, label)
    return (
        f"{100 * np.mean([row.scores[panel.metric] for panel, row in rows]):.1f}",
        f"{100 * np.mean([row.speedups.saved_fraction for _, row in rows]):.0f}",
        *(number(geometric_mean_of_all([row.speedups.time_ratios.get(size) for _, row in rows])) for size in sizes),
        MISSING if mean is None else f"{100 * mean:+.1f}",
        f"{signs.count(1)} / {signs.count(-1)}" if signs else MISSING,
    )


def half_table(panels: Sequence[Panel]) -> TextTable:
    """Return score and average layers of every method, task by task."""
    labels = _labels_by_gain(compared_panels(panels))
    labels += [label for label in _labels_by_gain(panels) if label not in labels]
    return TextTable(
        title=f"Score at layers, {_WITHIN}",
        headings=("method", *task_headings(panels)),
        cells=tuple((label, *(_score_at_layers(panel, label) for panel in panels)) for label in labels),
        notes=(
            "The task's metric on test rows, in percent, at average layers, for the knob chosen on validation data "
            f"within half of the layers; of {', '.join(sorted({str(panel.num_layers) for panel in panels}))} layers.",
        ),
        words=("method",),
    )


def _score_at_layers(panel: Panel, label: str) -> str:
    row = row_for_half(panel, label) if label in panel.methods else None
    return MISSING if row is None else f"{100 * row.scores[panel.metric]:.1f} at {row.speedups.average_layers:.1f}"
