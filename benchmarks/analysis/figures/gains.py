"""Which method beats exits that look at nothing, and where: points over a static exit at equal cost, in colour."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.comparisons.ranking import block_name, compared_panels
from benchmarks.analysis.comparisons.static_gains import StaticGain, mean_gain, static_gains
from benchmarks.analysis.figures.page import TEXT, panel_grid, printed
from benchmarks.analysis.panels.results import ORACLE, Panel
from benchmarks.analysis.tables.overall import task_headings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STRONGEST = 12.0  # points: where the colour is full
_PALE_ENOUGH = 0.5  # of the full colour, for black letters
_WIDE_ENOUGH = 8  # letters of a task's name that fit above a column


@printed
def gains_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw methods, best mean first, against tasks; None without static exits."""
    found = [static_gains(panel, panel.speedups[1]) for panel in panels]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.labels))
    labels = [label for label in labels if label != ORACLE and any(label in gains for gains in found)]
    if not labels:
        return None
    points = np.array([[_points(gains.get(label)) for gains in found] for label in labels])
    compared = [block_name(panel) for panel in compared_panels(panels)]
    counted = [gains for panel, gains in zip(panels, found, strict=True) if block_name(panel) in compared]
    means = np.array([_mean_points([gains.get(label) for gains in counted]) for label in labels])
    order = np.argsort(-means, kind="stable")  # those without a mean come last
    texts = [[gains[label].text if label in gains else "" for gains in found] for label in labels]
    shown = [["" if np.isnan(mean) else f"{mean:+.1f}", *line] for mean, line in zip(means, texts, strict=True)]
    figure, (axes,) = panel_grid(1, width=TEXT, height=0.75 + 0.165 * len(labels))
    _draw(axes, np.column_stack([means, points])[order], [shown[i] for i in order])
    axes.set_xlabel(f"points over a static exit at {panels[0].speedups[1]:g}x; *: their 95% interval excludes 0")
    axes.set_yticks(np.arange(len(labels)) + 0.5, [labels[i] for i in order])
    columns = ["mean", *(heading.replace(" · ", "\n") for heading in task_headings(panels))]
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    if any(len(column) > _WIDE_ENOUGH for column in columns):
        axes.tick_params(axis="x", labelrotation=25)
        for text in axes.get_xticklabels():
            text.set(horizontalalignment="left", rotation_mode="anchor")
    return figure


def _draw(axes: "Axes", points: NDArray[np.float64], texts: Sequence[Sequence[str]]) -> None:
    """Draw a table of points [methods, tasks] as colours, with their texts; the first column is apart."""
    axes.pcolormesh(points, vmin=-_STRONGEST, vmax=_STRONGEST, cmap="PuOr", edgecolors="white", linewidth=0.6)
    for line, column in np.argwhere(~np.isnan(points)):
        strong = abs(points[line, column]) > _PALE_ENOUGH * _STRONGEST
        text = axes.text(
            column + 0.5,
            line + 0.5,
            texts[line][column].replace("-", "−"),
            ha="center",
            va="center_baseline",
            fontsize=6.5,
            color="white" if strong else "0.1",
        )
        text.set_in_layout(False)  # it lies inside its axes, and measuring hundreds of them takes long
    axes.axvline(1, color="0.2", linewidth=1)
    axes.invert_yaxis()
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _mean_points(gains: Sequence[StaticGain | None]) -> float:
    mean = mean_gain(gains)
    return float("nan") if mean is None else 100 * mean


def _points(gain: StaticGain | None) -> float:
    return float("nan") if gain is None else 100 * gain.gain
