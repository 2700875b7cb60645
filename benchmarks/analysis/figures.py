"""Print figures, by seaborn over the frames of results: equal cost, curves, exit layers, Memorized Layers.

Figures fit the text of a paper as they are, with letters of 7 to 8 points and colours that colour-blind eyes tell
apart. Each has a file with its caption.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.analysis.equal_cost import EqualCost, comparison_of
from benchmarks.analysis.frames import REFERENCES, STATIC, TASK, Results, is_core, role_of
from benchmarks.analysis.rendering import display_name
from benchmarks.analysis.tables import chosen_knobs, write_text
from benchmarks.specs.targets import Budget
from consistentee.errors import unknown_name
from consistentee.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT_WIDTH = 7.0
"""Width of the text of a paper, in inches."""
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C5A2B")
"""Okabe and Ito's colours ("Color Universal Design", 2008) without yellow, which is too pale on paper; and brown."""
GREY = "0.45"
LEADING, MOST_OF_OURS = 5, 3
_HALF = 0.5
_ACROSS, _ANNOTATED = 3, 12
"""Heat maps in a row of the page, and layers up to which they fit and show percentages."""
_DENSE = {
    "classification": (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0),
    "generation": (1.0, 1.1, 1.25, 1.5, 1.75, 2.0),
}
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: figures are alike on all machines
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "pdf.fonttype": 42,  # letters stay letters, embedded as TrueType: what journals ask for
    "svg.fonttype": "path",  # letters are outlines: alike where the font is not installed
    "svg.hashsalt": "consistentee",
}
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Format -> what is not written into a file, so that the same figure is the same file."""


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure: name of its files, caption, reason why it may be missing, and function that draws it."""

    name: str
    caption: str
    missing: str
    draw: "Callable[[Results], Figure | None]"


@lru_cache(maxsize=4)
def leading_labels(results: Results) -> list[str]:
    """Return the labels that are drawn in colour, best first: the strongest ones and variants of ConsistentEE."""
    ranked = [x for x in _ranked(results) if role_of(results.methods[x]) not in REFERENCES]
    ours = [label for label in ranked if is_core(results.methods[label])][:MOST_OF_OURS]
    return [label for place, label in enumerate(ranked) if place < LEADING or label in ours][: len(COLOURS)]


def _ranked(results: Results) -> list[str]:
    """Return labels by their points at the middle budget, those that some task lacks last."""
    complete = list(dict.fromkeys(comparison_of(results).headline["method"]))
    middle = comparison_of(results).by_task()
    middle = middle[middle["speedup"] == comparison_of(results).middle].groupby("label")["points"].mean()
    others = middle.drop([x for x in complete if x in middle]).sort_values(ascending=False, kind="stable").index
    return [*complete, *(label for label in others if label in results.labels_to_compare)]


def palette(results: Results) -> dict[str, str]:
    """Return the colour of every label: the same in all figures; grey for references and those not told apart."""
    return dict.fromkeys(results.methods, GREY) | dict(zip(leading_labels(results), COLOURS, strict=False))


def _backbone(results: Results) -> str:
    return ", ".join(dict.fromkeys(backbone for _, backbone in results.tasks.index))


def equal_cost_figure(results: Results) -> "Figure | None":
    """Draw points at equal cost: methods in rows, a panel for every speed-up; means over tasks with intervals."""
    import seaborn as sns

    found = comparison_of(results).headline.dropna(subset=["points"])
    if found.empty:
        return None
    names = [display_name(label) for label in dict.fromkeys(found["method"])]
    found = found.assign(name=found["method"].map(display_name), panel=found["budget"].map("{:g}x".format))
    colours = {display_name(label): colour for label, colour in palette(results).items()}
    grid = sns.catplot(
        found,
        x="points",
        y="name",
        order=names,
        hue="name",
        palette={name: colours[name] for name in names},
        legend=False,
        col="panel",
        kind="strip",
        jitter=False,
        size=4.5,
        height=max(0.165 * len(names) + 0.55, 1.5),
        sharex=False,
    )
    grid.figure.set_figwidth(TEXT_WIDTH)
    for panel, axes in grid.axes_dict.items():
        own = found[found["panel"] == panel]
        rows = [names.index(name) for name in own["name"]]
        axes.hlines(rows, own["low"], own["high"], colors=own["name"].map(colours), linewidth=1.2)
        for row, point, over in zip(rows, own["points"], own["over"], strict=True):
            if over:
                axes.annotate("†", (point, row), (4, 1), textcoords="offset points", fontsize=7)
        axes.axvline(0, color="0.2", linewidth=0.6)
        axes.grid(axis="y", color="0.92")
    grid.set_titles("{col_name} fewer layers").set(xlabel="", ylabel="")
    grid.figure.supxlabel("points against the full model", fontsize=8)
    return _laid_out(grid.figure)


def curves_figure(results: Results) -> "Figure | None":
    """Draw points against the full model over the speed-up in layers: means over tasks, then task by task."""
    import seaborn as sns

    comparison = EqualCost(results, _DENSE[results.kind])
    found = comparison.by_task()
    found = found[found["label"].isin(results.labels_to_compare) & ~found["over"]]
    value = "points" if found["points"].notna().any() else "score"
    found = found.assign(value=100 * found[value], panel=found["task"])
    several = len({backbone for _, backbone in results.tasks.index}) > 1
    if several:
        found["panel"] = found["task"] + " · " + found["backbone"]
    panels = list(dict.fromkeys(found["panel"]))
    tasks = comparison.compared
    if len(tasks) > 1:
        of_means = found[pd.MultiIndex.from_frame(found[TASK]).isin(tasks)]
        groups = of_means.groupby(["label", "speedup"])["value"]
        means = groups.mean()[groups.size() == len(tasks)].reset_index()
        panels = [f"mean of {len(tasks)} tasks", *panels]
        found = pd.concat([means.assign(panel=panels[0]), found], ignore_index=True)
    named = [*leading_labels(results), *(x for x in results.methods if role_of(results.methods[x]) == STATIC)]
    found["name"] = found["label"].map({label: display_name(label) for label in named})
    names = [display_name(label) for label in named]
    colours = {display_name(label): palette(results)[label] for label in named}
    grid = sns.relplot(
        found.dropna(subset=["name"]),
        x="speedup",
        y="value",
        hue="name",
        style="name",
        hue_order=names,
        style_order=names,
        palette=colours,
        markers=True,
        markersize=3.5,
        linewidth=1.1,
        col="panel",
        col_order=panels,
        col_wrap=min(4, len(panels)),
        kind="line",
        errorbar=None,
        height=1.55 if len(panels) > 2 else 3.2,
        facet_kws={"sharey": False},
    )
    grid.figure.set_figwidth(TEXT_WIDTH if len(panels) > 2 else 0.5 * TEXT_WIDTH * len(panels) + 1)
    for panel, axes in grid.axes_dict.items():
        own = found[found["panel"] == panel]
        for _, curve in own[own["name"].isna()].groupby("label"):
            axes.plot(curve["speedup"], curve["value"], color="0.85", linewidth=0.7, zorder=0)
        shown = own[own["name"].notna() & (own["speedup"] <= results.speedups[-1])]["value"]
        if len(shown):
            top = own["value"].max()
            axes.set_ylim(shown.min() - 0.08 * (top - shown.min() + 1), top + 0.08 * (top - shown.min() + 1))
        if value == "points":
            axes.axhline(0, color="0.2", linewidth=0.6, zorder=0)
        axes.set_xlim(0.95, _DENSE[results.kind][-1] + 0.05)
    grid.set_titles("{col_name}").set(xlabel="", ylabel="")
    grid.figure.supxlabel("speed-up in layers", fontsize=8)
    grid.figure.supylabel("points against the full model" if value == "points" else "score, %", fontsize=8)
    if grid.legend is not None:
        handles, texts = grid.legend.legend_handles, [text.get_text() for text in grid.legend.texts]
        grid.legend.remove()
        grid.figure.legend(handles, texts, loc="outside upper center", ncols=4 if len(panels) > 2 else 2, frameon=False)
    return _laid_out(grid.figure)


def exits_figure(results: Results) -> "Figure | None":
    """Draw the share of test rows that exit at each layer, methods in rows, at the knob for half of the layers."""
    points = half_points(results)
    named = [*leading_labels(results), *(x for x, m in results.methods.items() if role_of(m) == "random")]
    points = points[points["label"].isin(named)]
    if points.empty:
        return None
    layers = max(len(results.column("exit_histogram")[knob]) for chosen in points["chosen"] for knob in chosen)
    tables = {}
    order = [label for label in named if label in set(points["label"])]
    for place, (task, own) in enumerate(points.groupby("task", sort=False)):
        shares = pd.DataFrame(np.nan, index=order, columns=range(layers))
        averages = own.set_index("label")["layers"].map("{:.1f}".format)
        for line in own.to_dict("records"):
            of_layers = exit_shares(results, line["chosen"])
            shares.loc[line["label"], : len(of_layers) - 1] = of_layers
        leftmost = place % (_ACROSS if layers <= _ANNOTATED else 1) == 0
        names = [display_name(label) if leftmost else "" for label in order]
        texts = [f"{name}  {averages.get(label, '   ')}" for name, label in zip(names, order, strict=True)]
        tables[str(task)] = shares.set_axis(texts, axis=0)
    return _heatmaps(tables, layers, "exit layer", "")


def half_points(results: Results) -> pd.DataFrame:
    """Return, for every task and label, the knobs chosen for the budget nearest to half of the layers."""
    found = chosen_knobs(results)
    distance = found["targets"].map(
        lambda targets: min((abs(t.layers_at_most - _HALF) for t in targets if isinstance(t, Budget)), default=np.nan)
    )
    order = found.assign(distance=distance).dropna(subset=["distance"]).sort_values("distance", kind="stable")
    return order.drop_duplicates([*TASK, "label"]).sort_index()


def exit_shares(results: Results, chosen: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of the test rows of all seeds that exit at layer 1, 2, ...: [exits]."""
    counts = np.sum([results.column("exit_histogram")[knob] for knob in chosen], axis=0)
    return np.asarray(counts / max(counts.sum(), 1))


def memorized_figure(results: Results) -> "Figure | None":
    """Draw at which layer rows exit by their Memorized Layer, a panel for every method, all tasks together."""
    if results.kind == "generation":
        return None
    depth = int(results.tasks["num_layers"].mode().iloc[0])
    points, tables = half_points(results), {}
    for label in leading_labels(results):
        own = points[(points["label"] == label) & (points["num_layers"] == depth)]
        known = [table for chosen in own["chosen"] if (table := memorized_against_exit(results, chosen)) is not None]
        if known:
            counts = np.sum([table[:, :depth] for table in known], axis=0)
            rows = counts.sum(axis=1)
            shares = counts / np.maximum(rows, 1)[:, None]
            tables[display_name(label)] = pd.DataFrame(
                shares, index=[f"{m + 1}  ({n:.0f})" for m, n in enumerate(rows)]
            )
    return _heatmaps(tables, depth, "exit layer", "Memorized Layer (rows)") if tables else None


def memorized_against_exit(results: Results, chosen: Sequence[int]) -> NDArray[np.float64] | None:
    """Count the test rows of all seeds by Memorized Layer and exit layer, [L, exits]; None where that was not kept."""
    total = None
    for knob in chosen:
        columns = results.predictions(int(results.column("cell")[knob]))
        exits = f"exit_layer_{results.column('point')[knob]:.0f}"
        layers = [] if columns is None else [name for name in columns if str(name).startswith("layer_prediction_")]
        if columns is None or exits not in columns or not layers:
            return None
        memorized = memorized_layers(columns[layers].to_numpy() == columns[["label"]].to_numpy())
        size = max(len(layers), len(results.column("exit_histogram")[knob]))
        total = np.zeros((len(layers), size)) if total is None else total
        np.add.at(total, (memorized - 1, columns[exits] - 1), 1)
    return total


def memorized_layers(correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the smallest layer from which on every classifier is right, and L where the last one is wrong.

    The same as :func:`consistentee.methods.hardness.memorized_layer` on arrays, so that figures load no torch.

    Args:
        correct: bool [rows, L].

    Returns:
        int64 [rows], 1-based.
    """
    layers = correct.shape[1]
    right_to_the_end = np.cumprod(correct[:, ::-1], axis=1).sum(axis=1)
    return np.minimum(layers - right_to_the_end + 1, layers)


def _heatmaps(tables: Mapping[str, pd.DataFrame], layers: int, below: str, beside: str) -> "Figure":
    """Draw tables of shares as heat maps, the larger shares in percent."""
    import seaborn as sns
    from matplotlib.figure import Figure

    shown = layers <= _ANNOTATED
    across = min(len(tables), _ACROSS if shown else 1)
    rows = -(-len(tables) // across)
    height = max(len(table) for table in tables.values())
    figure = Figure(figsize=(TEXT_WIDTH, rows * (0.14 * height + 0.45)))
    grid = figure.subplots(rows, across, squeeze=False).flatten()
    for axes in grid[len(tables) :]:
        axes.set_visible(False)
    for axes, (title, table) in zip(grid, tables.items(), strict=False):
        texts = table.map(lambda share: f"{100 * share:.0f}" if share >= 0.05 else "")
        sns.heatmap(
            table,
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="Blues",
            cbar=False,
            linewidths=0.4,
            annot=texts if shown else None,
            fmt="",
            annot_kws={"fontsize": 6},
        )
        axes.set_title(title, pad=3)
        step = 1 if shown else 5
        axes.set_xticks(np.arange(0, layers, step) + 0.5, [str(t) for t in range(1, layers + 1, step)])
        axes.tick_params(length=0, labelrotation=0)
    figure.supxlabel(below, fontsize=8)
    figure.supylabel(beside, fontsize=8)
    return _laid_out(figure)


def _laid_out(figure: "Figure") -> "Figure":
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03))
    return figure


_GREY_NOTE = "Colours: the five strongest methods and variants of ConsistentEE; references and the others are grey."
FIGURES = (
    FigureKind(
        "equal-cost",
        "Points against the full model at equal cost in layers, means over tasks, with 95% paired bootstrap "
        "intervals over "
        f"rows and seeds. †: even the cheapest knob costs more than the budget. {_GREY_NOTE}",
        "the full model was not run",
        equal_cost_figure,
    ),
    FigureKind(
        "curves",
        "Points against the full model over the speed-up in layers: at every cost, the two knobs of a method's "
        "validation "
        f"hull that are mixed to meet it, scored on test rows. {_GREY_NOTE}",
        "there is no method to compare",
        curves_figure,
    ),
    FigureKind(
        "exits",
        "Percentage of test rows that exit at each layer, at the knob chosen for half of the layers on validation "
        "rows; "
        "after the name, the average layer.",
        "no method has a knob within a budget",
        exits_figure,
    ),
    FigureKind(
        "memorized",
        "Percentage of test rows of each Memorized Layer (the first from which on every classifier is right; the "
        "last one "
        "for rows that it gets wrong; in brackets, how many rows) that exit at each layer, at the knob for half of the "
        "layers. Left of the diagonal rows exit too early, right of it they waste layers.",
        "the records do not hold the answers of every layer",
        memorized_figure,
    ),
)


def draw(kind: FigureKind, results: Results) -> "Figure | None":
    """Draw a figure in the style of print; None where the records lack what it needs."""
    import seaborn as sns
    from matplotlib import pyplot, rc_context

    with rc_context({**sns.axes_style("ticks"), **_STYLE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = kind.draw(results)
        if figure is not None:
            pyplot.close(figure)  # a notebook shows what a cell returns
        return figure


def draw_figure(name: str, results: Results) -> "Figure | None":
    """Draw a figure by the name of its files, such as ``equal-cost``; None where the records lack what it needs."""
    kinds = {kind.name: kind for kind in FIGURES}
    if name not in kinds:
        raise unknown_name("figure", name, kinds)
    return draw(kinds[name], results)


def write_figures(
    results: Results, folder: Path, kinds: Sequence[FigureKind] | None = None, file_format: str = "png"
) -> tuple[list[Path], list[str]]:
    """Write figures with their captions, ``NAME.png`` and ``NAME.txt``; the same results make the same files.

    Returns:
        The files of figures, and a line for each that cannot be drawn.

    Raises:
        UserError: the format is none of png (300 dots an inch), pdf and svg.
    """
    from matplotlib import rc_context

    if file_format not in _METADATA:
        raise unknown_name("figure format", file_format, _METADATA)
    paths, missing = [], []
    for kind in FIGURES if kinds is None else kinds:
        figure = draw(kind, results)
        if figure is None:
            missing.append(f"{kind.name}: {kind.missing}")
            continue
        path = folder / f"{kind.name}.{file_format}"
        with rc_context(_STYLE), replacing(path) as temporary:
            metadata = _METADATA[file_format]
            figure.savefig(temporary, format=file_format, dpi=300, metadata=metadata)
        write_text(path.with_suffix(".txt"), f"{kind.caption} {_backbone(results)}.\n")
        paths.append(path)
    return paths, missing


def write_headline_figure(results: Results, folder: Path) -> list[Path]:
    """Write the figure of points at equal cost; without the full model, that of whole curves."""
    paths, missing = write_figures(results, folder, FIGURES[:1])
    return paths if not missing else write_figures(results, folder, FIGURES[1:2])[0]
