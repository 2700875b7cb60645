"""Where rows exit: histograms by method, exit layer against Memorized Layer, and the policy's probability by layer."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.figures.grids import panel_grid
from benchmarks.analysis.figures.styles import bold_curves, competitors, is_core, styles
from benchmarks.analysis.results import Panel
from benchmarks.analysis.rows.instances import TableRow, answers_of, predictions_of, row_for_half
from benchmarks.store.records import SIGNAL_QUANTILES
from consistentee.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_SHARE_IN_WORDS = 0.05
_CURVES_COMPARED = 3


def exit_histogram_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw the share of the test rows that exit at each layer, a line a method, at the knob for half of the layers."""
    compared = [*competitors(panels), "random"]
    found = [(panel, _halves(panel, compared)) for panel in panels]
    drawable = [(panel, rows) for panel, rows in found if rows]
    if not drawable:
        return None
    longest = max(len(rows) for _, rows in drawable)
    figure, grid = panel_grid(len(drawable), columns=3, width=4.6, height=0.26 * longest + 1.0)
    for axes, (panel, rows) in zip(grid, drawable, strict=True):
        histograms = [exit_shares(row) for row in rows]
        shares = np.array(list(zip_longest(*histograms, fillvalue=0.0))).T  # a cascade has more exits than its peers
        _draw_shares(axes, shares, [f"{row.label}  {row.speedups.average_layers:.1f}" for row in rows])
        axes.set_title(f"{panel.task} · {panel.backbone}")
        axes.set_xlabel("exit layer")
    return figure


def exit_shares(row: TableRow) -> NDArray[np.float64]:
    """Return the share of the test rows of all seeds that exit at layer 1, 2, ...: [exits]."""
    counts = np.sum([choice.point.test.exit_histogram for choice in row.choices], axis=0)
    return np.asarray(counts / counts.sum())


def _halves(panel: Panel, labels: Sequence[str]) -> list[TableRow]:
    rows = [row_for_half(panel, label) for label in labels if label in panel.methods]
    return [row for row in rows if row is not None]


def _draw_shares(axes: "Axes", shares: NDArray[np.float64], names: Sequence[str]) -> None:
    """Draw a table of shares as colours, with the larger ones in percent: shares [names, exits]."""
    lines, exits = shares.shape
    axes.pcolormesh(shares, vmin=0, vmax=1, cmap="Blues", edgecolors="white", linewidth=0.6)
    for line, exit_ in zip(*np.nonzero(shares >= _LEAST_SHARE_IN_WORDS), strict=True):
        share = shares[line, exit_]
        colour = "white" if share > 0.55 else "0.15"
        text = axes.text(
            exit_ + 0.5, line + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour
        )
        text.set_in_layout(False)  # it lies inside its axes, and measuring thousands of them takes long
    axes.set_xticks(np.arange(exits) + 0.5, [str(layer) for layer in range(1, exits + 1)])
    axes.set_yticks(np.arange(lines) + 0.5, list(names))
    axes.tick_params(length=0)
    axes.invert_yaxis()
    for spine in axes.spines.values():
        spine.set_visible(False)


def memorized_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw at which layer rows exit, by their Memorized Layer: core methods and the strongest others.

    None where no cell has recorded what every layer answers.
    """
    labels = bold_curves(panels)[:_CURVES_COMPARED]
    tables = {
        (panel.task, panel.backbone, label): memorized_against_exit(panel, label)
        for panel in panels
        for label in labels
        if label in panel.methods
    }
    if all(table is None for table in tables.values()):
        return None
    figure, grid = panel_grid(len(panels) * len(labels), columns=len(labels), width=2.9, height=2.7)
    cells = iter(grid)
    for panel in panels:
        for label in labels:
            axes, table = next(cells), tables.get((panel.task, panel.backbone, label))
            axes.set_title(f"{panel.task} · {label}", fontsize=9)
            if table is None:
                _say(axes, "not recorded")
                continue
            rows = table.sum(axis=1, keepdims=True)
            shares = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
            _draw_shares(axes, shares, [f"{m + 1}  ({int(n)})" for m, n in enumerate(rows[:, 0])])
            axes.set_xlabel("exit layer")
            axes.set_ylabel("Memorized Layer (rows)")
    return figure


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


def policy_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw the exit probability of ConsistentEE's policies by layer: median and quantiles over all test rows.

    None where no cell has recorded it.
    """
    import seaborn

    style_of = styles(panels)
    recorded = [(panel, _policy_quantiles(panel)) for panel in panels]
    drawable = [(panel, policies) for panel, policies in recorded if policies]
    if not drawable:
        return None
    figure, grid = panel_grid(len(drawable), columns=4, width=3.6, height=2.8)
    for axes, (panel, policies) in zip(grid, drawable, strict=True):
        for label, quantiles in policies.items():
            layers, style = np.arange(1, len(quantiles) + 1), style_of[label]
            axes.fill_between(layers, quantiles[:, 1], quantiles[:, -2], color=style.colour, alpha=0.15, linewidth=0)
            axes.plot(layers, quantiles[:, len(SIGNAL_QUANTILES) // 2], **style.line2d(label=label, markersize=5))
        axes.set(title=f"{panel.task} · {panel.backbone}", xlabel="layer", ylabel="P(exit)", ylim=(-0.03, 1.03))
        axes.set_xticks(range(1, panel.num_layers))
        seaborn.despine(ax=axes)
    grid[0].legend(frameon=False, fontsize=8)
    return figure


def _policy_quantiles(panel: Panel) -> dict[str, NDArray[np.float64]]:
    core = [label for label in competitors([panel]) if is_core(panel.methods[label])]
    found = {label: signal_by_layer(panel, label) for label in core}
    return {label: quantiles for label, quantiles in found.items() if quantiles is not None}


def signal_by_layer(panel: Panel, label: str) -> NDArray[np.float64] | None:
    """Return the recorded quantiles of a rule's signal at the knob for half of the layers: [layers, quantiles].

    Averaged over seeds. None if some seed has not recorded them.
    """
    row = row_for_half(panel, label)
    quantiles = [choice.point.signal_quantiles for choice in row.choices] if row is not None else []
    return np.mean(quantiles, axis=0) if quantiles and all(quantiles) else None


def _say(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.5")
    axes.set(xticks=[], yticks=[])
