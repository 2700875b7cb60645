"""The headline as a figure: points against the full model at every cost, means over tasks, knobs mixed to that cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.ranking import compared_panels
from benchmarks.analysis.figures.page import COLUMN, add_legend, legend_rows, panel_grid, printed
from benchmarks.analysis.figures.styles import FULL_MODEL, Style, legend_handles, styles
from benchmarks.analysis.panels.results import FULL, Panel
from benchmarks.analysis.panels.select import Reach
from benchmarks.specs.targets import SPEEDUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN_SPEEDUPS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5)
_ENTRIES_ACROSS = 2
_DEEPEST_POINTS = 9.0  # below this a curve says only that it fails


@printed
def equal_cost_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw the mean points of every curve that all tasks have over the speed-up in layers; None without full models."""
    known = compared_panels([panel for panel in panels if FULL in panel.methods.values()])
    style_of = styles(panels) if style_of is None else style_of
    drawn = {label: style for label, style in style_of.items() if all(label in panel.methods for panel in known)}
    if not known or not drawn:
        return None
    handles = legend_handles(drawn)
    figure, (axes,) = panel_grid(1, width=COLUMN, height=2.3, legend_rows=legend_rows(handles, _ENTRIES_ACROSS))
    for label, style in drawn.items():
        axes.plot(
            _DRAWN_SPEEDUPS,
            _means(known, label),
            markevery=[_DRAWN_SPEEDUPS.index(speedup) for speedup in SPEEDUPS],
            **style.line2d(label=label),
        )
    _label_axes(axes, len(known))
    add_legend(figure, handles, _ENTRIES_ACROSS)
    return figure


def _means(panels: Sequence[Panel], label: str) -> np.ndarray:
    """Return the mean points over tasks at every drawn speed-up, NaN where some task has none so fast: [speedups]."""
    found = [[at_equal_cost(panel, label, speedup) for speedup in _DRAWN_SPEEDUPS] for panel in panels]
    points = [[np.nan if Reach.OVER in one.reaches else one.points or 0.0 for one in ones] for ones in found]
    return 100 * np.mean(points, axis=0)


def _label_axes(axes: "Axes", tasks: int) -> None:
    axes.axhline(0, **FULL_MODEL)
    axes.set_xticks([1, *SPEEDUPS, 3.5], ["1x", *(f"{speedup:g}x" for speedup in SPEEDUPS), "3.5x"])
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(lowest, -_DEEPEST_POINTS), highest)
    axes.grid(axis="y")
    axes.set_xlabel("speed-up in layers")
    mean = f",\nmean of {tasks} tasks" if tasks > 1 else ""
    axes.set_ylabel(f"points against the full model{mean}")
