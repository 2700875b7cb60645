"""Does the clock follow the layers? Allowed against measured speed-up, and every method's curve on its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.analysis.comparisons.real_time import measured_speedups
from benchmarks.analysis.figures.curves import curve_on_test, full_row
from benchmarks.analysis.figures.page import (
    ACROSS,
    COLUMN,
    MOST_PANELS,
    TEXT,
    add_legend,
    is_leftmost,
    legend_rows,
    panel_grid,
    printed,
)
from benchmarks.analysis.figures.styles import FULL_MODEL, OTHERS, Style, competitors, legend_handles, styles
from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.results import Panel
from benchmarks.analysis.rows.scored import scored_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12)
_DEEPEST_POINTS = 20.0


@printed
def speedup_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw measured against allowed speed-up, one panel a batch size, all tasks together; None if nothing was timed."""
    from matplotlib.lines import Line2D

    sizes = sorted({size for panel in panels for size in panel.batch_sizes})
    if not sizes:
        return None
    style_of = styles(panels) if style_of is None else style_of
    diagonal: dict[str, Any] = {"color": "0.4", "linewidth": 0.8}
    handles = [handle for handle in legend_handles(style_of) if handle.get_label() != "full model"]
    handles.append(Line2D([], [], **diagonal, label="measured = allowed"))
    width, across = (COLUMN, 2) if len(sizes) == 1 else (TEXT, ACROSS)
    rows = legend_rows(handles, across)
    figure, grid = panel_grid(len(sizes), across=2, width=width, height=2.6, legend_rows=rows)
    for axes, size in zip(grid, sizes, strict=True):
        points = [point for panel in panels for point in measured_speedups(panel, size)]
        highest = max((max(allowed, measured) for _, allowed, measured in points), default=1.0) * 1.08
        axes.plot([1, highest], [1, highest], **diagonal)
        for label in [label for label in style_of if any(point[0] == label for point in points)]:
            style = style_of[label]
            _, allowed, measured = zip(*(point for point in points if point[0] == label), strict=True)
            marker = style.marker or "."
            axes.plot(allowed, measured, **style.line2d(linestyle="none", marker=marker, markersize=3.5))
        _label_speedups(axes, size, highest)
    add_legend(figure, handles, across)
    return figure


def _label_speedups(axes: "Axes", size: int, highest: float) -> None:
    from matplotlib.ticker import FixedLocator

    axes.set(xscale="log", yscale="log", xlim=(0.9, highest), ylim=(0.7, highest), title=f"batch size {size}")
    axes.set(xlabel="allowed: L / average layers", ylabel="measured: stock time / method time")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(_TICKS))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(FixedLocator([]))


@printed
def methods_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw the strongest methods, a panel each: points against the full model over the share of the layers.

    Thin lines are tasks, the thick one their mean over the shares that all of them reach; grey are the means of all
    methods. None without the full model.
    """
    labels = competitors(panels)
    known = [panel for panel in panels if full_row(panel) is not None]
    if not known or not labels:
        return None
    style_of = styles(panels) if style_of is None else style_of
    shares = np.linspace(0, 1, 101)
    lines = {label: [_points(panel, label, shares) for panel in known if label in panel.methods] for label in labels}
    means = {label: np.mean(curves, axis=0) for label, curves in lines.items() if curves}
    shown = [label for label in style_of if label in means][:MOST_PANELS]
    figure, grid = panel_grid(len(shown), height=1.25)
    worst = min(float(np.nanmin(mean)) for mean in means.values() if not np.isnan(mean).all())
    for axes, label in zip(grid, shown, strict=True):
        colour = style_of[label].colour if style_of[label].named else "0.35"
        for mean in means.values():
            axes.plot(100 * shares, mean, **OTHERS.line2d(linewidth=0.5))
        for curve in lines[label]:
            axes.plot(100 * shares, curve, color=colour, linewidth=0.5, alpha=0.5, zorder=2)
        axes.plot(100 * shares, means[label], color=colour, linewidth=1.5, zorder=3)
        axes.axhline(0, **FULL_MODEL)
        axes.set(xlim=(0, 100), ylim=(max(worst * 1.1, -_DEEPEST_POINTS), 4), title=label, xticks=(0, 50, 100))
        axes.title.set_fontsize(7)
        if not is_leftmost(axes):
            axes.tick_params(labelleft=False)
    figure.supxlabel("share of the layers, %", fontsize=8)
    figure.supylabel("points against the full model", fontsize=8)
    return figure


def _points(panel: Panel, label: str, shares: np.ndarray) -> np.ndarray:
    """Return the test score minus the full model's of the same seeds, in points, at shares of the layers.

    NaN before the first exit.
    """
    curve, scored = curve_on_test(panel, label), scored_of(panel)
    full = mean_of_all([scored.full(seed) for seed in panel.seeds_of(label)])
    assert full is not None
    points = 100 * (curve.scores - full)
    return np.asarray(np.interp(shares, curve.layers / panel.num_layers, points, left=np.nan))
