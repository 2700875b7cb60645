"""The figure of one task of generation: texts against layers and against time, and exit layers along the text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.figures.curves import save_figure
from benchmarks.analysis.figures.styles import BOLD_METHODS, Style, competitors, is_core, panels_method, styles_with
from benchmarks.analysis.rows.texts import (
    GenerationPanel,
    GenerationRow,
    curve_rows,
    load_generation_panels,
    row_near_half,
    stock_row,
)
from benchmarks.analysis.tables.decoding import metric_name
from benchmarks.specs.base import folder_name
from benchmarks.store.generation_records import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_COLUMNS = 5
_FEWEST_TEXTS = 3  # a mean exit layer of fewer texts says nothing

Cost = Callable[[GenerationRow], float | None]
"""What a row costs; None where that is not known."""


def decoding_styles(panels: Sequence[GenerationPanel]) -> dict[str, Style]:
    """Give every curve its style; the core methods and those that agree best with the full model are drawn boldly."""
    return styles_with(panels, _bold(panels))


def _bold(panels: Sequence[GenerationPanel]) -> list[str]:
    curves = competitors(panels)
    core = [label for label in curves if is_core(panels_method(panels, label))]
    agreement = {label: _mean_agreement(panels, label) for label in curves}
    others = sorted((label for label in curves if label not in core), key=lambda label: -agreement[label])
    return [*core, *others][:BOLD_METHODS]


def _mean_agreement(panels: Sequence[GenerationPanel], label: str) -> float:
    matches = [row.token_match.value for panel in panels for row in curve_rows(panel, label)]
    return float(np.mean(matches)) if matches else 0.0


def decoding_figure(panel: GenerationPanel, style_of: dict[str, Style]) -> "Figure":
    """Draw one panel: the task's score and the token match (rows), against layers and time, and where tokens exit."""
    import seaborn
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    labels = [label for label in panel.labels if label in style_of]
    legend_rows = -(-(len(labels) + 1) // _LEGEND_COLUMNS)
    with seaborn.axes_style("ticks"), seaborn.plotting_context("paper", font_scale=1.1):
        drawn = Figure(figsize=(12.6, 6.8 + 0.24 * legend_rows), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        grid = drawn.subplots(2, 3)
        score, size = metric_name(panel.metric), _batch_size(panel)
        for axes, name, mean in (
            (grid[0], f"{score} to the reference, %", lambda row: row.scores[panel.metric]),
            (grid[1], "tokens as in the full model, %", lambda row: row.token_match),
        ):
            _draw_rows(axes[0], panel, style_of, mean, lambda row: row.speedups.average_layers)
            axes[0].set(xlabel="average layers a decoded token", ylabel=name)
            _draw_rows(axes[1], panel, style_of, mean, _milliseconds_at(size))
            axes[1].set(xlabel=f"milliseconds of decoding a token, batch size {size}", ylabel=name)
            axes[1].set_xlim(left=0)
        _draw_positions(grid[0, 2], panel, style_of)
        _draw_agreement(grid[1, 2], panel, style_of)
        for axes in grid.flat:
            axes.grid(axis="y", color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            seaborn.despine(ax=axes)
        if not panel.batch_sizes:
            for axes in grid[:, 1]:
                axes.text(0.5, 0.5, "not timed", transform=axes.transAxes, ha="center", va="center", color="0.5")
        drawn.suptitle(f"{panel.task} · {panel.backbone}")
        _add_legend(drawn, {label: style_of[label] for label in labels})
    return drawn


def _batch_size(panel: GenerationPanel) -> int:
    return min(panel.batch_sizes, default=1)


def _milliseconds_at(batch_size: int) -> Cost:
    def milliseconds(row: GenerationRow) -> float | None:
        clock = row.clocks.get(batch_size)
        return None if clock is None else 1000 / clock.tokens_per_second

    return milliseconds


def _draw_rows(
    axes: "Axes",
    panel: GenerationPanel,
    style_of: dict[str, Style],
    mean: Callable[[GenerationRow], Mean],
    cost: Cost,
) -> None:
    """Draw operating points with intervals, joined by rising cost, and the stock model as a star and a line."""
    stock = stock_row(panel)
    axes.axhline(100 * mean(stock).value, color="0.25", linewidth=0.8, zorder=1)
    if (at := cost(stock)) is not None:
        axes.plot(at, 100 * mean(stock).value, marker="*", markersize=12, color="0.1", linestyle="none", zorder=3)
    for label in [label for label in panel.labels if label in style_of]:
        priced = [(at, row) for row in curve_rows(panel, label) if (at := cost(row)) is not None]
        if not priced:
            continue
        style = style_of[label]
        costs, rows = zip(*sorted(priced, key=lambda pair: pair[0]), strict=True)
        _draw_curve(axes, costs, [mean(row) for row in rows], style)


def _draw_curve(axes: "Axes", costs: Sequence[float], means: Sequence[Mean], style: Style) -> None:
    scores = 100 * np.asarray([mean.value for mean in means])
    low, high = 100 * np.asarray([mean.interval for mean in means]).T
    intervals = np.maximum([scores - low, high - scores], 0) if style.bold and style.marker else None
    axes.errorbar(
        costs,
        scores,
        yerr=intervals,
        color=style.colour,
        linestyle=style.line,
        linewidth=style.width,
        marker=style.marker or ".",
        markersize=6.5 if style.bold and style.marker else 4.5,
        markerfacecolor=style.face,
        markeredgecolor=style.edge,
        elinewidth=0.7,
        zorder=2 if style.bold else 1.5,
    )


def _draw_positions(axes: "Axes", panel: GenerationPanel, style_of: dict[str, Style]) -> None:
    """Draw the mean exit layer of the second, third, ... token, at the budget nearest to half of the layers."""
    from matplotlib.ticker import MaxNLocator

    for label in [label for label in panel.labels if label in style_of]:
        row = row_near_half(panel, label)
        if row is None or row.acceptance is not None:  # drafts do not exit
            continue
        layers = layers_by_position(row)
        style = style_of[label]
        places = np.arange(2, len(layers) + 2)
        axes.plot(places, layers, color=style.colour, linestyle=style.line, linewidth=style.width)
    axes.set(xlabel="position of the token in the text", ylabel="mean exit layer", ylim=(0, panel.num_layers + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("at the budget nearest to half of the layers", fontsize=9)


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


def _draw_agreement(axes: "Axes", panel: GenerationPanel, style_of: dict[str, Style]) -> None:
    """Draw what knobs were chosen by: agreement against layers over the whole knob, on validation prompts."""
    for label in [label for label in panel.labels if label in style_of]:
        style = style_of[label]
        for cell in panel.cells_of(label):
            points = sorted(cell.record.curve_validation, key=lambda point: point.average_layers)
            axes.plot(
                [point.average_layers for point in points],
                [100 * point.agreement for point in points],
                color=style.colour,
                linestyle=style.line,
                linewidth=style.width,
            )
    axes.set(xlabel="average layers, validation", ylabel="agreement of single tokens, %")
    axes.set_title("the whole knob, replayed on validation prompts", fontsize=9)


def _add_legend(drawn: "Figure", style_of: dict[str, Style]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style.line2d(label=label)) for label, style in style_of.items()]
    handles.append(Line2D([], [], color="0.25", linewidth=0.8, marker="*", markersize=9, label="stock generate"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, handlelength=3.4)


def figure_name(panel: GenerationPanel, panels: Sequence[GenerationPanel]) -> str:
    """Return the name of a panel's files, without ending: its task, and its backbone where there are several."""
    several = len({other.backbone for other in panels}) > 1
    return "-".join(["curves", folder_name(panel.task), *([folder_name(panel.backbone)] if several else [])])


def write_decoding_figures(
    out_dir: Path, labels: Sequence[str] | None = None, *, kinds: Sequence[str] = ("png",)
) -> list[Path]:
    """Write one figure a (task, backbone) into a results folder of generation; return the files.

    ``labels`` and errors are those of :func:`benchmarks.analysis.results.load_panels`, ``kinds`` those of
    ``save_figure``.
    """
    panels, _ = load_generation_panels(out_dir, labels)
    return draw_all(panels, out_dir, kinds)


def draw_all(panels: Sequence[GenerationPanel], out_dir: Path, kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figures of some panels, and return the files."""
    style_of = decoding_styles(panels)
    drawn = [(figure_name(panel, panels), decoding_figure(panel, style_of)) for panel in panels]
    return [path for name, figure in drawn for path in save_figure(figure, out_dir, name, kinds)]
