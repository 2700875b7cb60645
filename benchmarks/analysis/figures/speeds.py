"""Does the clock follow the layers? Allowed against measured speed-up, and every method's curve on its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.comparisons.real_time import measured_speedups
from benchmarks.analysis.figures.curves import curve_on_test, full_row
from benchmarks.analysis.figures.grids import panel_grid
from benchmarks.analysis.figures.styles import competitors, styles
from benchmarks.analysis.results import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12)


def speedup_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw measured against allowed speed-up, one panel a batch size, all tasks together; None if nothing was timed."""
    import seaborn
    from matplotlib.ticker import FixedLocator

    sizes = sorted({size for panel in panels for size in panel.batch_sizes})
    if not sizes:
        return None
    style_of = styles(panels)
    figure, grid = panel_grid(len(sizes), columns=3, width=4.4, height=4.2)
    for axes, size in zip(grid, sizes, strict=True):
        points = [point for panel in panels for point in measured_speedups(panel, size)]
        highest = max((max(allowed, measured) for _, allowed, measured in points), default=1.0) * 1.08
        axes.plot([1, highest], [1, highest], color="0.5", linewidth=0.9, label="measured = allowed")
        for label in [label for label in style_of if any(point[0] == label for point in points)]:
            style = style_of[label]
            _, allowed, measured = zip(*(point for point in points if point[0] == label), strict=True)
            axes.plot(
                allowed,
                measured,
                **style.line2d(label=label, linestyle="none", marker=style.marker or ".", markersize=5.5),
            )
        axes.set(xscale="log", yscale="log", xlim=(0.9, highest), ylim=(0.7, highest), title=f"batch size {size}")
        axes.set(xlabel="allowed: L / average layers", ylabel="measured: stock time / method time")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(_TICKS))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(FixedLocator([]))
        seaborn.despine(ax=axes)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=5 if len(sizes) > 1 else 2, frameon=False, fontsize=8
    )
    return figure


def methods_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw every method's curves in a panel of its own: points lost against the full model, over the share of layers.

    Thin lines are tasks, the thick one their mean over the shares that all of them reach; grey are the means of the
    other methods. None without the full model.
    """
    import seaborn

    labels = competitors(panels)
    known = [panel for panel in panels if full_row(panel) is not None]
    if not known or not labels:
        return None
    style_of = styles(panels)
    shares = np.linspace(0, 1, 101)
    lines = {
        label: [_points_lost(panel, label, shares) for panel in known if label in panel.methods] for label in labels
    }
    means = {label: np.mean(curves, axis=0) for label, curves in lines.items() if curves}
    figure, grid = panel_grid(len(means), columns=6, width=2.1, height=1.9)
    worst = min(float(np.nanmin(mean)) for mean in means.values() if not np.isnan(mean).all())
    for axes, label in zip(grid, means, strict=True):
        for other, mean in means.items():
            if other != label:
                axes.plot(100 * shares, mean, color="0.86", linewidth=0.7, zorder=1)
        for curve in lines[label]:
            axes.plot(100 * shares, curve, color=style_of[label].colour, linewidth=0.6, alpha=0.6, zorder=2)
        axes.plot(100 * shares, means[label], color=style_of[label].colour, linewidth=2, zorder=3)
        axes.axhline(0, color="0.25", linewidth=0.7, zorder=1)
        axes.set(xlim=(0, 100), ylim=(max(worst * 1.1, -20), 4))
        axes.set_title(label, fontsize=9)
        seaborn.despine(ax=axes)
    figure.supxlabel("share of the layers, %", fontsize=10)
    figure.supylabel("points against the full model", fontsize=10)
    return figure


def _points_lost(panel: Panel, label: str, shares: np.ndarray) -> np.ndarray:
    """Return the test score minus the full model's, in points, at shares of the layers; NaN before the first exit."""
    full = full_row(panel)
    assert full is not None
    curve = curve_on_test(panel, label)
    cost = curve.layers / panel.num_layers
    lost = 100 * (curve.scores - full.scores[panel.metric])
    return np.asarray(np.interp(shares, cost, lost, left=np.nan))
