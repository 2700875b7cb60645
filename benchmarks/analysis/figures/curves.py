"""Score against layers, and against time: one panel a (task, backbone), curves as the hulls that validation chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.figures.page import add_legend, is_leftmost, label_below, legend_rows, panel_grid, printed
from benchmarks.analysis.figures.styles import FULL_MODEL, STOCK_MODEL, Style, legend_handles, styles
from benchmarks.analysis.panels.results import FULL, Panel
from benchmarks.analysis.panels.select import concave_hull
from benchmarks.analysis.rows.frame import knobs_of
from benchmarks.analysis.rows.instances import TableRow, label_rows
from benchmarks.analysis.tables.columns import seeds_text
from benchmarks.specs.targets import SPEEDUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_HEIGHT = 1.45


@dataclass(frozen=True)
class DrawnCurve:
    """What the mixtures of a method reach on the test split, at rising budgets, all [K].

    Attributes:
        budgets: average layers on the validation split.
        layers, scores: on the test split.
    """

    budgets: NDArray[np.float64]
    layers: NDArray[np.float64]
    scores: NDArray[np.float64]

    def at(self, budget: float) -> tuple[float, float]:
        """Return layers and score of the mixture for a budget; beyond the hull, of its end."""
        layers, scores = (float(np.interp(budget, self.budgets, values)) for values in (self.layers, self.scores))
        return layers, scores


def curve_on_test(panel: Panel, label: str) -> DrawnCurve:
    """Return what a method reaches on the test split along the hull of its knobs, averaged over seeds.

    All knobs of a label, of all cells of a grid of parameters, are ONE set of points. Those on the upper concave hull
    of the VALIDATION split are kept: what lies between two of them is a mixture of both, as at equal cost, see
    :func:`benchmarks.analysis.panels.select.mixture_at`. A score that is no mean over rows is drawn as if it were one.
    """
    return panel.once(f"curve of {label}", lambda: _curve_on_test(panel, label))


def _curve_on_test(panel: Panel, label: str) -> DrawnCurve:
    hulls = [_hull(panel, label, seed) for seed in panel.seeds_of(label)]
    budgets = np.unique(np.concatenate([hull[0] for hull in hulls]))
    layers, scores = np.mean([[np.interp(budgets, hull[0], values) for values in hull[1:]] for hull in hulls], axis=0)
    return DrawnCurve(budgets, layers, scores)


def _hull(panel: Panel, label: str, seed: int) -> NDArray[np.float64]:
    """Return the corners of the validation hull of one seed: validation layers, test layers, test scores: [3, K]."""
    knobs = knobs_of(panel, label, seed)
    columns = ["validation_layers", "layers", "quality"]
    corners = concave_hull(knobs["validation_layers"], knobs["validation_quality"])
    return knobs[columns].to_numpy(dtype=float).T[:, corners]


def full_row(panel: Panel) -> TableRow | None:
    """Return the full model's row, if there is one."""
    rows = (row for cell in panel.cells_of_method(FULL) for row in label_rows(panel, cell.record.label))
    return next(rows, None)


@printed
def figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure":
    """Draw score against average layers, a panel a task; ``style_of``: of all panels, where these are some of them."""
    style_of = styles(panels) if style_of is None else style_of
    handles = legend_handles(_drawn(panels, style_of))
    drawn, grid = panel_grid(len(panels), height=_PANEL_HEIGHT, legend_rows=legend_rows(handles))
    for axes, panel in zip(grid, panels, strict=True):
        _draw_layers(axes, panel, style_of)
        _draw_full(axes, panel)
        _label(axes, panel, style_of)
        axes.set_xlim(0.9, panel.num_layers + 0.1)
        axes.set_xticks(_whole_layers(panel.num_layers))
    label_below(grid, "average layers")
    add_legend(drawn, handles)
    return drawn


@printed
def times_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw score against milliseconds a row at batch size 1, a panel a task; None if nothing was timed."""
    timed = [panel for panel in panels if 1 in panel.batch_sizes]
    if not timed:
        return None
    style_of = styles(panels) if style_of is None else style_of
    handles = legend_handles(_drawn(timed, style_of), **STOCK_MODEL, label="full model, stock")
    drawn, grid = panel_grid(len(timed), height=_PANEL_HEIGHT, legend_rows=legend_rows(handles))
    for axes, panel in zip(grid, timed, strict=True):
        _draw_times(axes, panel, style_of)
        timed_seeds = {timing.seed for timing in panel.timings}
        if timed_seeds < set(panel.seeds_of()):
            note = f"times of {seeds_text(timed_seeds)} alone"
            axes.text(0.97, 0.04, note, transform=axes.transAxes, ha="right", color="0.4")
        _draw_full(axes, panel)
        _label(axes, panel, style_of)
        axes.set_xlim(left=0)
    label_below(grid, "milliseconds a row")
    add_legend(drawn, handles)
    return drawn


def _drawn(panels: Sequence[Panel], style_of: Mapping[str, Style]) -> dict[str, Style]:
    """Return the styles of what some of the panels have."""
    return {label: style for label, style in style_of.items() if any(label in panel.methods for panel in panels)}


def _whole_layers(layers: int) -> range:
    """Return the layers that an axis names: all of six, every second of twelve."""
    return range(1, layers + 1) if layers <= 6 else range(2, layers + 1, max(2, layers // 6))


def _draw_layers(axes: "Axes", panel: Panel, style_of: Mapping[str, Style]) -> None:
    budgets = [panel.num_layers / speedup for speedup in SPEEDUPS]
    for label, style in _drawn([panel], style_of).items():
        curve = curve_on_test(panel, label)
        axes.plot(curve.layers, 100 * curve.scores, **style.line2d(marker=""))
        if style.marker:
            layers, scores = np.array([curve.at(budget) for budget in budgets]).T
            axes.plot(layers, 100 * scores, **style.line2d(linestyle="none"))


def _draw_times(axes: "Axes", panel: Panel, style_of: Mapping[str, Style]) -> None:
    """Draw the timed points, joined by rising time, and the stock model as a star."""
    full = full_row(panel)
    if full is not None and 1 in full.clocks:
        at = full.clocks[1].milliseconds, 100 * full.scores[panel.metric]
        axes.plot(*at, **FULL_MODEL | STOCK_MODEL | {"zorder": 4})
    for label, style in _drawn([panel], style_of).items():
        points = sorted(
            (row.clocks[1].milliseconds, 100 * row.scores[panel.metric])
            for row in label_rows(panel, label)
            if 1 in row.clocks
        )
        if points:
            axes.plot(*zip(*points, strict=True), **style.line2d())


def _draw_full(axes: "Axes", panel: Panel) -> None:
    """Draw the full model's score, and its 95% interval as a band: what differs by less differs by noise, or may."""
    full = full_row(panel)
    if full is not None:
        low, high = full.interval
        axes.axhspan(100 * low, 100 * high, color="0.955", linewidth=0, zorder=0)
        axes.axhline(100 * full.scores[panel.metric], **FULL_MODEL)


def _label(axes: "Axes", panel: Panel, style_of: Mapping[str, Style]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(panel.task)
    axes.set_ylim(*score_limits(panel, style_of))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y")
    if is_leftmost(axes) or panel.metric != "accuracy":  # other scores are named wherever they are
        axes.set_ylabel(f"{panel.metric}, %")


def score_limits(panel: Panel, style_of: Mapping[str, Style]) -> tuple[float, float]:
    """Return the range of scores, in percent: all that is told apart from 3x on, and the full model with its interval.

    What is cheaper, or worse, leaves the panel below: it would press together what there is to see.
    """
    cheapest = panel.num_layers / max(SPEEDUPS)
    here = _drawn([panel], style_of)
    drawn = [curve_on_test(panel, label) for label, style in here.items() if style.marker]
    drawn = drawn or [curve_on_test(panel, label) for label in here]
    shown = [score for curve in drawn for score in (curve.at(cheapest)[1], float(curve.scores.max()))]
    full = full_row(panel)
    shown += [full.scores[panel.metric], *full.interval] if full is not None else []
    low, high = 100 * min(shown, default=0.0), 100 * max(shown, default=1.0)
    margin = max(0.5, 0.06 * (high - low))
    return low - margin, high + margin
