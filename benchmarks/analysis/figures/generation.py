"""The figure of one task of generation: texts against layers and against time, and exit layers along the text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.figures.page import add_legend, legend_rows, panel_grid, printed, save_figure
from benchmarks.analysis.figures.styles import FULL_MODEL, STOCK_MODEL, Style, legend_handles, styles
from benchmarks.analysis.panels.select import concave_hull
from benchmarks.analysis.rows.texts import (
    GenerationCell,
    GenerationPanel,
    GenerationRow,
    curve_rows,
    load_generation_panels,
    row_near_half,
    stock_row,
)
from benchmarks.analysis.tables.columns import metric_name
from benchmarks.specs.base import folder_name
from benchmarks.store.generation_records import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEWEST_TEXTS = 3  # a mean exit layer of fewer texts says nothing

Cost = Callable[[GenerationRow], float | None]
"""What a row costs; None where that is not known."""


def _cells_by_seed(panel: GenerationPanel, label: str) -> list[list[GenerationCell]]:
    return [panel.cells_of(label, seed) for seed in panel.seeds_of(label)]


def _replayed(cells: Sequence[GenerationCell]) -> NDArray[np.float64]:
    """Return layers and agreement of every knob of some cells, a whole grid, on validation prompts: [2, knobs]."""
    points = [point for cell in cells for point in cell.record.curve_validation]
    return np.array([[point.average_layers for point in points], [point.agreement for point in points]])


@printed
def decoding_figure(panel: GenerationPanel, style_of: Mapping[str, Style]) -> "Figure":
    """Draw one panel: the task's score and the token match (rows), against layers and time, and where tokens exit."""
    here = {label: style for label, style in style_of.items() if label in panel.methods}
    handles = legend_handles(here, **STOCK_MODEL, label="stock generate")
    drawn, grid = panel_grid(6, across=3, height=1.75, legend_rows=legend_rows(handles))
    score, size = metric_name(panel.metric), min(panel.batch_sizes, default=1)
    for row, name, mean in (
        (grid[:2], f"{score}, %", lambda row: row.scores[panel.metric]),
        (grid[3:5], "token match, %", lambda row: row.token_match),
    ):
        _draw_rows(row[0], panel, here, mean, lambda row: row.speedups.average_layers)
        row[0].set(xlabel="average layers a decoded token", ylabel=name)
        row[0].set_xlim(right=panel.num_layers * 1.04)  # drafts run more
        _draw_rows(row[1], panel, here, mean, _milliseconds_at(size))
        row[1].set(xlabel=f"milliseconds a token, batch size {size}")
        row[1].set_xlim(left=0)
        if not panel.batch_sizes:
            row[1].text(0.5, 0.5, "not timed", transform=row[1].transAxes, ha="center", va="center", color="0.4")
    _draw_positions(grid[2], panel, here)
    _draw_agreement(grid[5], panel, here)
    for axes in grid:
        axes.grid(axis="y")
    drawn.suptitle(f"{panel.task} · {panel.backbone}", fontsize=8)
    add_legend(drawn, handles)
    return drawn


def _milliseconds_at(batch_size: int) -> Cost:
    return lambda row: 1000 / row.clocks[batch_size].tokens_per_second if batch_size in row.clocks else None


def _draw_rows(
    axes: "Axes",
    panel: GenerationPanel,
    style_of: Mapping[str, Style],
    mean: Callable[[GenerationRow], Mean],
    cost: Cost,
) -> None:
    """Draw operating points, joined by rising cost, with intervals where curves are few; and the stock model's star."""
    stock = stock_row(panel)
    axes.axhline(100 * mean(stock).value, **FULL_MODEL)
    if (at := cost(stock)) is not None:
        axes.plot(at, 100 * mean(stock).value, **FULL_MODEL | STOCK_MODEL | {"zorder": 4})
    for label, style in style_of.items():
        priced = [(at, row) for row in curve_rows(panel, label) if (at := cost(row)) is not None]
        if not priced:
            continue
        costs, rows = zip(*sorted(priced, key=lambda pair: pair[0]), strict=True)
        means = [mean(row) for row in rows]
        if style.marker:
            low, high = 100 * np.asarray([one.interval for one in means]).T
            axes.vlines(costs, low, high, color=style.colour, linewidth=0.5, alpha=0.5, zorder=style.layer - 0.5)
        axes.plot(costs, [100 * one.value for one in means], **style.line2d())


def _draw_positions(axes: "Axes", panel: GenerationPanel, style_of: Mapping[str, Style]) -> None:
    """Draw the mean exit layer of the second, third, ... token, at the budget nearest to half of the layers."""
    from matplotlib.ticker import MaxNLocator

    for label, style in style_of.items():
        row = row_near_half(panel, label)
        if row is None or row.acceptance is not None or not style.named:  # drafts do not exit
            continue
        layers = layers_by_position(row)
        axes.plot(np.arange(2, len(layers) + 2), layers, **style.line2d(marker="", linewidth=0.9))
    axes.set(xlabel="position of the token", ylabel="mean exit layer", ylim=(0, panel.num_layers + 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title("budget nearest to half of the layers", fontsize=7)


def layers_by_position(row: GenerationRow) -> NDArray[np.float64]:
    """Return the mean exit layer of the second, third, ... token over all texts of all seeds that have such a token.

    Positions that too few texts reach are left out.
    """
    points = [choice.point for choice in row.choices]
    longest = max(len(point.layers_by_position) for point in points)
    total, texts = np.zeros(longest), np.zeros(longest)
    for point in points:
        counts = np.asarray(point.texts_by_position, dtype=float)
        total[: len(counts)] += counts * np.asarray(point.layers_by_position)
        texts[: len(counts)] += counts
    enough = texts >= _FEWEST_TEXTS
    return total[enough] / texts[enough]


def _draw_agreement(axes: "Axes", panel: GenerationPanel, style_of: Mapping[str, Style]) -> None:
    """Draw what knobs are decoded by: the hull of agreement over layers on validation prompts, one a seed."""
    for label, style in style_of.items():
        for cells in _cells_by_seed(panel, label):
            points = _replayed(cells)
            layers, agreement = points[:, concave_hull(*points)]
            axes.plot(layers, 100 * agreement, **style.line2d(markersize=2.5, markevery=0.15))
    axes.set(xlabel="average layers, validation", ylabel="agreement, %")
    axes.set_xlim(right=panel.num_layers * 1.04)
    axes.set_title("hulls of the replayed knobs", fontsize=7)


def figure_name(panel: GenerationPanel, panels: Sequence[GenerationPanel]) -> str:
    """Return the name of a panel's files, without ending: its task, and its backbone where there are several."""
    several = len({other.backbone for other in panels}) > 1
    return "-".join(["curves", folder_name(panel.task), *([folder_name(panel.backbone)] if several else [])])


def write_decoding_figures(
    out_dir: Path,
    labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    *,
    to: Path,
    kinds: Sequence[str] = ("png",),
) -> list[Path]:
    """Write one figure a (task, backbone) of a results folder of generation into ``to``; return the files.

    ``labels``, ``tasks`` and errors are those of :func:`benchmarks.analysis.panels.results.load_panels`, ``kinds``
    those of ``save_figure``.
    """
    panels, _ = load_generation_panels(out_dir, labels, tasks)
    return draw_all(panels, to, kinds)


def draw_all(panels: Sequence[GenerationPanel], out_dir: Path, kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figures of some panels, and return the files."""
    style_of = styles(panels)
    drawn = [(figure_name(panel, panels), decoding_figure(panel, style_of)) for panel in panels]
    return [path for name, figure in drawn for path in save_figure(figure, out_dir, name, kinds)]
