"""Where rows exit: histograms by method, exit layer against Memorized Layer, and the policy's probability by layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.figures.page import add_legend, is_leftmost, label_below, panel_grid, printed
from benchmarks.analysis.figures.styles import Style, is_core, styles
from benchmarks.analysis.panels.results import Panel
from benchmarks.analysis.rows.instances import TableRow, answers_of, predictions_of, row_for_half
from benchmarks.store.records import SIGNAL_QUANTILES
from consistentee.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_SHARE_IN_WORDS = 0.05
_FEW_LAYERS = 8


@printed
def exit_histogram_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw the share of the test rows that exit at each layer, a line a method, at the knob for half of the layers."""
    style_of = styles(panels) if style_of is None else style_of
    compared = [*(label for label, style in style_of.items() if style.marker), "random"]
    found = [(panel, _halves(panel, compared)) for panel in panels]
    drawable = [(panel, rows) for panel, rows in found if rows]
    if not drawable:
        return None
    lines = [label for label in compared if any(label in rows for _, rows in drawable)]
    exits = max(len(exit_shares(row)) for _, rows in drawable for row in rows.values())
    figure, grid = panel_grid(len(drawable), across=_across(exits), height=0.16 * len(lines) + 0.4)
    for axes, (panel, rows) in zip(grid, drawable, strict=True):
        table = np.zeros((len(lines), exits))
        for line, label in enumerate(lines):
            if label in rows:
                shares = exit_shares(rows[label])
                table[line, : len(shares)] = shares  # a cascade has more exits than its peers
        names = lines if is_leftmost(axes) else [""] * len(lines)
        averages = [f"{rows[label].speedups.average_layers:.1f}" if label in rows else "" for label in lines]
        _draw_shares(axes, table, [f"{name}  {average}" for name, average in zip(names, averages, strict=True)])
        axes.set_title(panel.task)
    label_below(grid, "exit layer")
    return figure


def _across(layers: int) -> int:
    """Return how many tables of so many layers fit side by side, their percentages to be read."""
    return 4 if layers <= _FEW_LAYERS else 3 if layers <= 2 * _FEW_LAYERS else 1


def exit_shares(row: TableRow) -> NDArray[np.float64]:
    """Return the share of the test rows of all seeds that exit at layer 1, 2, ...: [exits]."""
    counts = np.sum([choice.point.test.exit_histogram for choice in row.choices], axis=0)
    return np.asarray(counts / counts.sum())


def _halves(panel: Panel, labels: Sequence[str]) -> dict[str, TableRow]:
    rows = {label: row_for_half(panel, label) for label in labels if label in panel.methods}
    return {label: row for label, row in rows.items() if row is not None}


def _draw_shares(axes: "Axes", shares: NDArray[np.float64], names: Sequence[str]) -> None:
    """Draw a table of shares as colours, with the larger ones in percent: shares [names, exits]."""
    lines, exits = shares.shape
    axes.pcolormesh(shares, vmin=0, vmax=1, cmap="Blues", edgecolors="white", linewidth=0.5)
    for line, exit_ in zip(*np.nonzero(shares >= _LEAST_SHARE_IN_WORDS), strict=True):
        share = shares[line, exit_]
        colour = "white" if share > 0.55 else "0.15"
        text = axes.text(
            exit_ + 0.5, line + 0.5, f"{100 * share:.0f}", ha="center", va="center_baseline", fontsize=6, color=colour
        )
        text.set_in_layout(False)  # it lies inside its axes, and measuring thousands of them takes long
    axes.set_xticks(np.arange(exits) + 0.5, [str(layer) for layer in range(1, exits + 1)])
    axes.set_yticks(np.arange(lines) + 0.5, list(names))
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


@printed
def memorized_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw at which layer rows exit, by their Memorized Layer: a panel a curve that is told apart, all tasks together.

    None where no cell has recorded what every layer answers. Of several depths, that of most panels is drawn.
    """
    style_of = styles(panels) if style_of is None else style_of
    depth = max(depths := [panel.num_layers for panel in panels], key=depths.count)
    alike = [panel for panel in panels if panel.num_layers == depth]
    tables = {label: _memorized_on_all(alike, label) for label, style in style_of.items() if style.marker}
    drawable = {label: table for label, table in tables.items() if table is not None}
    if not drawable:
        return None
    figure, grid = panel_grid(len(drawable), across=_across(depth), height=0.14 * depth + 0.6)
    for axes, (label, table) in zip(grid, drawable.items(), strict=True):
        rows = table.sum(axis=1, keepdims=True)
        shares = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
        _draw_shares(axes, shares, [f"{m + 1}  ({int(n)})" for m, n in enumerate(rows[:, 0])])
        axes.set_title(label)
    figure.supxlabel("exit layer", fontsize=8)
    figure.supylabel("Memorized Layer (rows)", fontsize=8)
    return figure


def _memorized_on_all(panels: Sequence[Panel], label: str) -> NDArray[np.float64] | None:
    """Add up the rows of all tasks where they are recorded: [L, exits]; None where there are none."""
    tables = [memorized_against_exit(panel, label) for panel in panels if label in panel.methods]
    known = [table for table in tables if table is not None]
    if not known:
        return None
    total = np.zeros((len(known[0]), max(table.shape[1] for table in known)))
    for table in known:
        total[:, : table.shape[1]] += table
    return total


def memorized_against_exit(panel: Panel, label: str) -> NDArray[np.float64] | None:
    """Count test rows by Memorized Layer and exit layer, at the knob for half of the layers: [L, exits].

    The Memorized Layer is the first from which on every classifier of the method's own model is right, and L where the
    last one is wrong (ConsistentEE, section 3.3), taken on test rows here. All seeds are added up. None where the
    answers of the layers are not recorded, or where answers are numbers and none is simply right.
    """
    row = row_for_half(panel, label)
    if row is None or panel.metric in ("pearson", "spearman"):
        return None
    counts: NDArray[np.float64] | None = None
    for choice in row.choices:
        try:
            columns, exits = predictions_of(choice.cell.rows), answers_of(choice).exit_layers
        except UserError:
            return None
        layers = [
            columns[f"layer_prediction_{t}"] for t in range(1, len(columns)) if f"layer_prediction_{t}" in columns
        ]
        if not layers:
            return None
        memorized = memorized_layers(np.stack(layers, axis=1) == columns["label"][:, None])
        size = len(layers), max(len(layers), len(choice.point.test.exit_histogram))
        table = np.zeros(size) if counts is None else counts
        np.add.at(table, (memorized - 1, exits - 1), 1)
        counts = table
    return counts


def memorized_layers(correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the smallest layer from which on every classifier is right, and L where the last one is wrong.

    The twin of :func:`consistentee.methods.hardness.memorized_layer` on arrays, so that tables and plots load no torch.

    Args:
        correct: bool [rows, L].

    Returns:
        int64 [rows], 1-based.
    """
    layers = correct.shape[1]
    right_to_the_end = np.cumprod(correct[:, ::-1], axis=1).sum(axis=1)
    return np.minimum(layers - right_to_the_end + 1, layers)


@printed
def policy_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw the exit probability of ConsistentEE's policies by layer: median and quantiles over all test rows.

    None where no cell has recorded it.
    """
    from matplotlib.lines import Line2D

    style_of = styles(panels) if style_of is None else style_of
    recorded = [(panel, _policy_quantiles(panel, style_of)) for panel in panels]
    drawable = [(panel, policies) for panel, policies in recorded if policies]
    if not drawable:
        return None
    figure, grid = panel_grid(len(drawable), height=1.3, legend_rows=1)
    for axes, (panel, policies) in zip(grid, drawable, strict=True):
        for label, quantiles in policies.items():
            layers, style = np.arange(1, len(quantiles) + 1), style_of[label]
            axes.fill_between(layers, quantiles[:, 1], quantiles[:, -2], color=style.colour, alpha=0.15, linewidth=0)
            axes.plot(layers, quantiles[:, len(SIGNAL_QUANTILES) // 2], **style.line2d(markersize=3))
        axes.set(title=panel.task, ylim=(-0.03, 1.03), xticks=range(1, panel.num_layers, max(1, panel.num_layers // 6)))
        if is_leftmost(axes):
            axes.set_ylabel("P(exit)")
    label_below(grid, "layer")
    shown = [label for label in style_of if any(label in policies for _, policies in drawable)]
    add_legend(figure, [Line2D([], [], **style_of[label].line2d(label=label)) for label in shown])
    return figure


def _policy_quantiles(panel: Panel, style_of: Mapping[str, Style]) -> dict[str, NDArray[np.float64]]:
    core = [label for label, method in panel.methods.items() if is_core(method) and style_of[label].marker]
    found = {label: signal_by_layer(panel, label) for label in core}
    return {label: quantiles for label, quantiles in found.items() if quantiles is not None}


def signal_by_layer(panel: Panel, label: str) -> NDArray[np.float64] | None:
    """Return the recorded quantiles of a rule's signal at the knob for half of the layers: [layers, quantiles].

    Averaged over seeds. None if some seed has not recorded them.
    """
    row = row_for_half(panel, label)
    quantiles = [choice.point.signal_quantiles for choice in row.choices] if row is not None else []
    return np.mean(quantiles, axis=0) if quantiles and all(quantiles) else None
