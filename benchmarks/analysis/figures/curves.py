"""The figure of a results folder: score against average layers, and against time, one column a (task, backbone)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.curves import pareto_front
from benchmarks.analysis.figures.styles import Style, styles
from benchmarks.analysis.frame import knobs_of
from benchmarks.analysis.results import FULL, ORACLE, Panel
from benchmarks.analysis.rows.instances import TableRow, label_rows
from consistentee.errors import unknown_name
from consistentee.files import replacing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_LEGEND_COLUMNS = 5


@dataclass(frozen=True)
class DrawnCurve:
    """A curve on the test split, by rising layers: ``layers`` [K] and ``scores`` [K]."""

    layers: NDArray[np.float64]
    scores: NDArray[np.float64]


def curve_on_test(panel: Panel, label: str) -> DrawnCurve:
    """Return what a method reaches on the test split along its knob, averaged over seeds.

    Of a grid of parameters, only the points on the Pareto front of the VALIDATION data are drawn: they are what
    somebody who does not know the test split would use.
    """
    return panel.once(f"curve of {label}", lambda: _curve_on_test(panel, label))


def _curve_on_test(panel: Panel, label: str) -> DrawnCurve:
    parts = [_mean_over_seeds(variant) for _, variant in knobs_of(panel, label).groupby("parameters", sort=False)]
    layers, scores, validation_layers, validation_scores = np.concatenate(parts, axis=1)
    if len(parts) > 1:
        chosen = pareto_front(validation_layers, validation_scores)
        layers, scores = layers[chosen], scores[chosen]
    order = np.argsort(layers, kind="stable")
    return DrawnCurve(layers[order], scores[order])


def _mean_over_seeds(knobs: "pd.DataFrame") -> NDArray[np.float64]:
    """Average over seeds, knob by knob: test and validation (layers, scores), [4, K].

    Seeds whose curves have other lengths are left out.
    """
    columns = ["layers", "quality", "validation_layers", "validation_quality"]
    curves = [seed[columns].to_numpy(dtype=float).T for _, seed in knobs.groupby("cell", sort=False)]
    return np.mean([curve for curve in curves if curve.shape == curves[0].shape], axis=0)


def draw_layers(axes: "Axes", panel: Panel, style_of: dict[str, Style]) -> None:
    """Draw score against average layers: curves over the knob, operating points with their intervals."""
    full = full_row(panel)
    if full is not None:
        axes.axhline(100 * full.scores[panel.metric], color="0.25", linewidth=0.8, zorder=1, label="full model")
    deepest = float(panel.num_layers)
    for label in panel.labels:
        if label not in style_of:
            continue
        style, curve = style_of[label], curve_on_test(panel, label)
        deepest = max(deepest, float(curve.layers.max()))  # a cascade may run more than the stock model
        axes.plot(
            curve.layers,
            100 * curve.scores,
            color=style.colour,
            linestyle=style.line,
            linewidth=style.width,
            zorder=2 if style.bold else 1.5,
        )
        if style.marker:
            rows = label_rows(panel, label)
            _draw_points(axes, panel.metric, rows, [row.speedups.average_layers for row in rows], style)
    axes.set_xlim(0.85, deepest + 0.15)
    axes.set_xlabel("average layers")


def draw_times(axes: "Axes", panel: Panel, style_of: dict[str, Style]) -> None:
    """Draw score against milliseconds a row at batch 1: the operating points, joined, and the stock model."""
    full = full_row(panel)
    if full is not None:
        axes.axhline(100 * full.scores[panel.metric], color="0.25", linewidth=0.8, zorder=1)
        if 1 in full.clocks:
            axes.plot(
                full.clocks[1].milliseconds, 100 * full.scores[panel.metric], marker="*", markersize=12, color="0.1"
            )
    for label in panel.labels:
        rows = [row for row in label_rows(panel, label) if 1 in row.clocks] if label in style_of else []
        if not rows:
            continue
        style, times = style_of[label], [row.clocks[1].milliseconds for row in rows]
        scores = [100 * row.scores[panel.metric] for row in rows]
        axes.plot(
            times,
            scores,
            color=style.colour,
            linestyle=style.line,
            linewidth=style.width,
            zorder=2 if style.bold else 1.5,
        )
        if style.marker:
            _draw_points(axes, panel.metric, rows, times, style)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds a row, batch size 1")


def _draw_points(axes: "Axes", metric: str, rows: Sequence[TableRow], costs: Sequence[float], style: Style) -> None:
    """Draw operating points; only bold curves show their intervals, twenty of them would hide each other."""
    scores = np.asarray([row.scores[metric] for row in rows])
    if style.bold:
        low, high = np.asarray([row.interval for row in rows]).T
        # An interval that does not hold the score itself (a skewed bootstrap) must not give a negative bar.
        lengths = 100 * np.maximum([scores - low, high - scores], 0)
        axes.errorbar(costs, 100 * scores, lengths, color=style.colour, linestyle="none", elinewidth=0.8, zorder=3)
    axes.plot(
        costs,
        100 * scores,
        color=style.colour,
        linestyle="none",
        marker=style.marker,
        markersize=6.5 if style.bold else 4.5,
        markerfacecolor=style.face,
        markeredgecolor=style.edge,
        markeredgewidth=1.1 if style.open_marker else 0.7,
        alpha=1 if style.bold else 0.85,
        zorder=3 if style.bold else 1.8,
    )


def full_row(panel: Panel) -> TableRow | None:
    """Return the full model's row, if there is one."""
    rows = [row for cell in panel.cells_of_method(FULL) for row in label_rows(panel, cell.record.label)]
    return rows[0] if rows else None


def score_limits(panel: Panel, style_of: dict[str, Style]) -> tuple[float, float]:
    """Return the range of scores, in percent, that shows all competitors and leaves hopeless references out."""
    shown: list[float] = []
    for label, method in panel.methods.items():
        if label in style_of and style_of[label].marker:
            shown += curve_on_test(panel, label).scores.tolist()
            shown += [bound for row in label_rows(panel, label) for bound in row.interval]
        elif method == ORACLE:
            shown.append(float(curve_on_test(panel, label).scores.max()))
    full = full_row(panel)
    shown += [full.scores[panel.metric], *full.interval] if full is not None else []
    shown = shown or [0.0, 1.0]
    low, high = 100 * min(shown), 100 * max(shown)
    margin = max(1.0, 0.04 * (high - low))
    return low - margin, high + margin


def figure(panels: Sequence[Panel]) -> "Figure":
    """Draw all panels: two rows of axes (layers, time) for at most four columns, and one legend under them."""
    import seaborn
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style_of = styles(panels)
    blocks = -(-len(panels) // _COLUMNS)
    columns = -(-len(panels) // blocks)
    legend_rows = -(-(len(style_of) + 2) // _legend_columns(columns))
    height = 3.3 * 2 * blocks + 0.24 * legend_rows + 0.2
    with seaborn.axes_style("ticks"), seaborn.plotting_context("paper", font_scale=1.15):
        drawn = Figure(
            figsize=(max(4.2 * columns, 5.6), height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.07)
        )
        grid = drawn.subplots(2 * blocks, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for i, panel in enumerate(panels):
            block, column = divmod(i, columns)
            _draw_panel(grid[2 * block, column], grid[2 * block + 1, column], panel, style_of)
        _add_legend(drawn, panels, style_of, _legend_columns(columns))
    return drawn


def _legend_columns(columns: int) -> int:
    return min(columns + 1, _LEGEND_COLUMNS)  # one legend entry is nearly as wide as a panel


def _draw_panel(top: "Axes", bottom: "Axes", panel: Panel, style_of: dict[str, Style]) -> None:
    import seaborn

    draw_layers(top, panel, style_of)
    draw_times(bottom, panel, style_of)
    top.set_title(f"{panel.task} · {panel.backbone}")
    for axes in (top, bottom):
        axes.set_visible(True)
        axes.set_ylim(*score_limits(panel, style_of))
        axes.set_ylabel(f"{panel.metric}, %")
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        seaborn.despine(ax=axes)
    if not any(1 in row.clocks for label in panel.labels for row in label_rows(panel, label)):
        reason = "not timed for every seed" if 1 in panel.batch_sizes else "not timed"
        bottom.text(0.5, 0.5, reason, transform=bottom.transAxes, ha="center", va="center", color="0.5")


def _add_legend(drawn: "Figure", panels: Sequence[Panel], style_of: dict[str, Style], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **style.line2d(label=f"{label} (upper bound)" if label == ORACLE else label))
        for label, style in style_of.items()
    ]
    if any(full_row(panel) is not None for panel in panels):
        handles.append(Line2D([], [], color="0.25", linewidth=0.8, marker="*", markersize=9, label="full model"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.4)


_UNDATED: dict[str, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}}
"""Format -> what is not written into a file, so that the same figure is the same file."""


def save_figure(drawn: "Figure", out_dir: Path, name: str = "curves", kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure in some formats, atomically, the same bytes for the same figure; a PDF keeps letters as text.

    Raises UserError for a format that is neither ``png`` (200 dpi) nor ``pdf``.
    """
    from matplotlib import rc_context

    for kind in kinds:
        if kind not in _UNDATED:
            raise unknown_name("figure format", kind, _UNDATED)
    layout = drawn.get_layout_engine()
    if layout is not None:  # places are found once, without drawing, and are the same for all files
        layout.execute(drawn)
        drawn.set_layout_engine(None)
    paths = [out_dir / f"{name}.{kind}" for kind in kinds]
    with rc_context({"pdf.fonttype": 42}):
        for path, kind in zip(paths, kinds, strict=True):
            with replacing(path) as temporary:
                drawn.savefig(temporary, format=kind, dpi=200, metadata=_UNDATED[kind])
    return paths
