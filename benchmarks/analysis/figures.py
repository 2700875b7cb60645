"""Print figures, by seaborn over the frames of results: points at equal cost, curves, and exit layers.

Figures fit the text of a paper as they are, with letters of 7 to 8 points and colours that colour-blind eyes tell
apart. Each has a file with its caption, which names what is drawn.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from benchmarks.analysis.comparison import Comparison, comparison_of
from benchmarks.analysis.frames import CURVE, REFERENCES, STATIC, TASK, Results, exit_networks, role_of
from benchmarks.analysis.rendering import INTERVALS, MARKS, METRIC_NAMES, display_name
from benchmarks.analysis.tables import mean_of, task_names
from benchmarks.store.hashes import write_text
from consistentee.errors import unknown_name
from consistentee.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    Panels = tuple[Figure, list[Axes]]
    Drawn = tuple[Figure, str]  # and its caption

TEXT_WIDTH = 7.0
"""Width of the text of a paper, in inches."""
COLOURS = {
    "#D55E00": "orange",
    "#0072B2": "blue",
    "#009E73": "green",
    "#CC79A7": "pink",
    "#E69F00": "yellow",
    "#56B4E9": "light blue",
    "#8C5A2B": "brown",
}
"""Okabe and Ito's colours ("Color Universal Design", 2008) without yellow, which is too pale on paper; and brown."""
GREY = "0.45"
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":", "-.")
LEADING = 7
_DENSE = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
_STYLE = Path(__file__).parent / "templates" / "print.mplstyle"
FigureFormat = Literal["png", "pdf", "svg"]
_METADATA: dict[FigureFormat, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Format -> what is not written into a file, so that the same figure is the same file."""


@lru_cache(maxsize=4)
def leading_labels(results: Results) -> list[str]:
    """Return the labels that are drawn with a marker of their own, best first: those of a run, and the best others."""
    ranked = [x for x in ranked_labels(results) if role_of(results.methods[x]) not in REFERENCES]
    own_first = sorted(ranked, key=lambda label: label not in results.own_labels)
    return [label for label in ranked if label in own_first[:LEADING]]


def ranked_labels(results: Results) -> list[str]:
    """Return labels by their points at the middle budget, those that some task lacks last."""
    comparison = comparison_of(results)
    complete = list(dict.fromkeys(comparison.means["method"]))
    middle = comparison.by_task
    middle = middle[middle["speedup"] == comparison.middle].groupby("label")["points"].mean()
    others = middle.drop([x for x in complete if x in middle]).sort_values(ascending=False, kind="stable").index
    return [*complete, *(label for label in others if label in results.labels_to_compare)]


def families(results: Results) -> dict[str, str]:
    """Return what the colour of every label stands for: the network of its exits, or of few methods the method.

    In generation it is the method, too.
    """
    methods = [label for label in results.labels_to_compare if role_of(results.methods[label]) not in REFERENCES]
    if results.kind == "generation" or len(methods) < LEADING:
        return {label: label for label in leading_labels(results)}
    networks = exit_networks(results.records)
    return {label: networks[label] for label in results.labels_to_compare if label in networks}


def palette(results: Results) -> dict[str, str]:
    """Return the colour of every label, the same in all figures: that of its family, see :func:`families`.

    References, and families beyond the palette, are grey.
    """
    family = families(results)
    names = Counter(family.values()).most_common(len(COLOURS))
    colours = dict(zip((name for name, _ in names), COLOURS, strict=False))
    return {label: colours.get(family.get(label, ""), GREY) for label in results.methods}


@lru_cache(maxsize=4)
def dense_curves(results: Results) -> pd.DataFrame:
    """Return what every label reaches at many speed-ups, task by task, after the mean over tasks if there are several.

    Columns: those of :meth:`Comparison.by_task`, costs in percent of the full model's (``x_layers``, ``x_flops``,
    ``x_b1``, ...), and ``panel``: the task, or the mean.
    """
    comparison = Comparison(results, _DENSE)
    found = comparison.by_task
    found = found[found["label"].isin(results.labels_to_compare) & ~found["over"]]
    depth = results.tasks["num_layers"].loc[pd.MultiIndex.from_frame(found[TASK])].to_numpy()
    found = found.assign(panel=task_names(results, found), x_layers=100 * found["layers"] / depth)
    for name in comparison.ratios:
        found[f"x_{name.removesuffix('_ratio').removeprefix('speedup_')}"] = 100 / found[name].astype(float)
    tasks = comparison_of(results).compared
    if len(tasks) < 2:
        return found
    groups = comparison_of(results).in_means(found).groupby(["label", "speedup"], sort=False)
    means = groups.mean(numeric_only=True)[groups.size() == len(tasks)].reset_index()
    return pd.concat([means.assign(panel=f"mean of {len(tasks)} tasks"), found], ignore_index=True)


def exit_shares(results: Results) -> pd.DataFrame:
    """Return the share of the test rows of all seeds that exit at each layer, at the middle budget.

    A line for every task, label and ``layer``: ``share``, and ``layers``, the average.
    """
    comparison = comparison_of(results)
    shares = results.knobs["exit_histogram"].dropna().map(lambda counts: np.asarray(counts) / max(np.sum(counts), 1))
    found = comparison.per_seed[comparison.per_seed["speedup"] == comparison.middle]
    mixtures = zip(found["first"], found["second"], found["cost_weight"], strict=True)
    found = found.assign(share=[w * shares[first] + (1 - w) * shares[second] for first, second, w in mixtures])
    groups = found.groupby([*TASK, "label"], sort=False)
    means = groups.agg(layers=("layers", "mean"), share=("share", lambda shares: np.mean(list(shares), axis=0)))
    means["layer"] = [np.arange(1, len(share) + 1) for share in means["share"]]
    return means.reset_index().explode(["layer", "share"]).astype({"layer": int, "share": float})


def _panels(titles: Sequence[str], across: int, size: tuple[float, float], **shared: Any) -> "Panels":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(-(-len(titles) // across), across, squeeze=False, **shared).flatten()
    for axes in grid[len(titles) :]:
        axes.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, pad=3, y=1)  # a fixed place: otherwise all ticks are measured again and again
    return figure, list(grid[: len(titles)])


def equal_cost_figure(results: Results) -> "Drawn | None":
    """Draw points at equal cost: methods in rows, a panel for every speed-up; means over tasks with intervals."""
    import seaborn as sns

    found = comparison_of(results).means.dropna(subset=["points"])
    if found.empty:
        return None
    found = found.assign(name=found["method"].map(display_name), colour=found["method"].map(palette(results)))
    names = dict(zip(found["name"], found["method"], strict=True))
    budgets = dict(iter(found.groupby("budget")))
    size = TEXT_WIDTH, max(0.165 * len(names) + 0.55, 1.5)
    titles = [f"{budget:g}x speed-up in layers" for budget in budgets]
    figure, panels = _panels(titles, len(budgets), size, sharey=True)
    for axes, own in zip(panels, budgets.values(), strict=True):
        rows = own["name"].map(list(names).index)
        axes.hlines(rows, own["low"], own["high"], colors=own["colour"], linewidth=1.2)
        colours = dict(zip(own["name"], own["colour"], strict=True))
        sns.scatterplot(own, x="points", y=rows, hue="name", palette=colours, s=20, linewidth=0, legend=False, ax=axes)
        for row, point in zip(rows[own["over"]], own.loc[own["over"], "points"], strict=True):
            axes.annotate("†", (point, row), (4, 1), textcoords="offset points", fontsize=7)
        axes.axvline(0, color="0.2", linewidth=0.6)
        axes.grid(axis="y", color="0.92")
        axes.set(xlabel="", ylabel="")
    panels[0].set_yticks(range(len(names)), list(names))
    for text, label in zip(panels[0].get_yticklabels(), names.values(), strict=True):
        text.set_fontweight("bold" if label in results.own_labels else "normal")
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    compared = mean_of(comparison_of(results).compared)
    figure.supxlabel(f"points against the full model, {compared}", fontsize=8)
    speeds = ", ".join(f"{budget:g}" for budget in budgets)
    words = [
        f"Points (hundredths of the score) against the full model at {speeds} times the speed in layers, {compared}.",
        f"Lines: {INTERVALS}." if found["low"].notna().any() else "",
        MARKS["†"] if found["over"].any() else "",
        "Bold: of this run; the others are published." if set(results.own_labels) & set(names.values()) else "",
    ]
    return figure, _caption(results, words, names.values())


def curves_figure(results: Results) -> "Drawn | None":
    """Draw points against the full model over the speed-up in layers: means over tasks, then task by task.

    Lines are matplotlib's own: seaborn would take four times as long for the same ones.
    """
    widest, found = results.speedups[-1], dense_curves(results)
    compared = pd.MultiIndex.from_frame(found[TASK]).isin(comparison_of(results).compared)
    found = found[(found["speedup"] <= widest) & (compared | found["task"].isna())]
    if found.empty:
        return None
    value = "points" if found["points"].notna().any() else "score"
    named = [*leading_labels(results), *(x for x in results.methods if role_of(results.methods[x]) == STATIC)]
    styles: dict[str, dict[str, Any]] = {
        label: {"color": palette(results)[label], "marker": marker, "linestyle": dash, "label": display_name(label)}
        | {"linewidth": 2.0 if label in results.own_labels else 1.1}
        for label, marker, dash in zip(named, cycle(MARKERS), cycle(DASHES), strict=False)
    }
    found = found.assign(value=100 * found[value])
    panels = dict(iter(found.groupby("panel", sort=False)))
    across, many = min(4, len(panels)), len(panels) > 2
    height = (1.55 if many else 3.2) * -(-len(panels) // across)
    figure, grid = _panels(list(panels), across, (TEXT_WIDTH if many else 0.5 * TEXT_WIDTH * across + 1, height))
    lines: dict[str, Line2D] = {}
    for axes, own in zip(grid, panels.values(), strict=True):
        curves = own.pivot(index="speedup", columns="label", values="value")
        drawn = curves.columns.intersection(list(styles))
        lowest = curves[drawn].min(axis=None) if len(drawn) else curves.min(axis=None)
        axes.plot(curves.drop(columns=drawn).where(curves >= lowest), color="0.85", linewidth=0.7, zorder=0)
        for label in drawn:
            lines[label] = axes.plot(curves[label], markersize=3.5, markeredgewidth=0, **styles[label])[0]
        if value == "points":
            axes.axhline(0, color="0.2", linewidth=0.6, zorder=0)
        axes.set(xlim=(0.95, widest + 0.05))
    metrics = {METRIC_NAMES.get(metric, metric) for metric in results.tasks["metric"]}
    what = "points against the full model" if value == "points" else f"{' or '.join(sorted(metrics))}, %"
    figure.supxlabel("speed-up in layers", fontsize=8)
    figure.supylabel(what, fontsize=8)
    handles = [lines[label] for label in named if label in lines]
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if many else 2, frameon=False)
    others = found["label"].nunique() - len(lines)
    words = [
        f"{what[0].upper()}{what[1:]} over the speed-up in layers: at every cost, two neighbouring knobs of a method "
        "are mixed to meet it, and scored on test rows. A curve ends at its cheapest knob.",
        f"Pale: {others} other methods, as far as they are above the lowest point of the named ones." if others else "",
        "Thick: of this run; the others are published." if set(results.own_labels) & set(lines) else "",
    ]
    return figure, _caption(results, words, lines)


def exits_figure(results: Results) -> "Drawn | None":
    """Draw the share of test rows that exit at each layer, methods in rows, at the middle budget."""
    import seaborn as sns
    from matplotlib.ticker import PercentFormatter

    named = [*leading_labels(results), *(x for x, m in results.methods.items() if role_of(m) == "random")]
    found = comparison_of(results).in_means(exit_shares(results))  # others have few curves
    found = found[found["label"].isin(named)]
    if found.empty:
        return None
    if results.kind == "generation":  # few of many layers have an exit
        found = found[found.groupby("layer")["share"].transform("max") > 0]
    order = [label for label in named if label in set(found["label"])]
    tables = {
        str(name): own.pivot(index="label", columns="layer", values="share").reindex(order).rename(index=display_name)
        for name, own in found.assign(name=task_names(results, found)).groupby("name", sort=False)
    }
    across, height = min(len(tables), 3), 0.14 * len(order) + 0.45
    figure, panels = _panels(list(tables), across, (TEXT_WIDTH, 0.45 + -(-len(tables) // across) * height), sharey=True)
    for axes, table in zip(panels, tables.values(), strict=True):
        # Ticks are set here: seaborn would draw the figure for every label, to see which labels overlap.
        ticks = {"xticklabels": False, "yticklabels": False}
        sns.heatmap(table, ax=axes, vmin=0, vmax=1, cmap="Blues", cbar=False, linewidths=0.4, **ticks)
        axes.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns)
        axes.tick_params(length=0, labelrotation=0)
        axes.set(xlabel="", ylabel="")
    panels[0].set_yticks(np.arange(len(order)) + 0.5, table.index)
    shares = f"share of {'decoded tokens' if results.kind == 'generation' else 'test rows'}"
    colours, percent = panels[0].collections[0], PercentFormatter(1)
    bar = figure.colorbar(colours, ax=panels, label=shares, format=percent, location="top", shrink=0.4, aspect=30)
    bar.outline.set_visible(False)
    figure.supxlabel("exit layer", fontsize=8)
    speed = f"{comparison_of(results).middle:g} times the speed in layers"
    one_layer = [display_name(x) for x, method in results.methods.items() if role_of(method) == STATIC]
    words = (
        f"{shares[0].upper()}{shares[1:]} that exit at each layer, at {speed}, or as near as a method comes to it.",
        f"Not drawn, for all exit at one layer: {', '.join(one_layer)}." if one_layer else "",
    )
    return figure, _caption(results, words, ())


def _caption(results: Results, words: Sequence[str], drawn: Collection[str]) -> str:
    """Return a caption: ``words``, the colours of the labels that are ``drawn``, and the results behind them."""
    family, colours, tasks = families(results), palette(results), comparison_of(results).compared
    found = {COLOURS[colours[x]]: family[x] for x in drawn if colours[x] in COLOURS and family[x] != x}
    named = ", ".join(f"{colour} {name}" for colour, name in found.items())
    cells = comparison_of(results).in_means(results.cells)
    seeds = cells[cells["label"].isin(drawn or results.labels_to_compare)].groupby(CURVE)["seed"].nunique()
    few_to_many = " to ".join(map(str, sorted({seeds.min(), seeds.max()})))
    sentences = [
        *words,
        f"Colours stand for the network of the exits: {named}; grey is any other, or a reference." if named else "",
        f"Tasks ({len(tasks)}): {', '.join(task for task, _ in tasks)}. Seeds of a method on a task: {few_to_many}. "
        f"Backbone: {', '.join(dict.fromkeys(backbone for _, backbone in tasks))}.",
    ]
    return " ".join(filter(None, sentences)) + "\n"


FIGURES: "dict[str, Callable[[Results], Drawn | None]]" = {
    "equal-cost": equal_cost_figure,
    "curves": curves_figure,
    "exits": exits_figure,
}
"""The figures by the name of their files."""


def draw_figure(name: str, results: Results) -> "Figure | None":
    """Draw a figure by the name of its files, such as ``equal-cost``; None where the records lack what it needs."""
    drawn = _drawn(name, results)
    return None if drawn is None else drawn[0]


def _drawn(name: str, results: Results) -> "Drawn | None":
    import seaborn as sns
    from matplotlib import rc_context

    if name not in FIGURES:
        raise unknown_name("figure", name, FIGURES)
    with rc_context(sns.axes_style("ticks")), rc_context(fname=_STYLE):
        return FIGURES[name](results)


def write_figures(
    results: Results, folder: Path, names: Sequence[str] = tuple(FIGURES), file_format: FigureFormat = "png"
) -> tuple[list[Path], list[str]]:
    """Write figures with their captions, ``NAME.png`` and ``NAME.txt``; the same results make the same files.

    Return the files of figures (a png has 200 dots an inch), and a line for each that cannot be drawn. Raises UserError
    if a name is that of no figure.
    """
    from matplotlib import rc_context
    from PIL import Image

    paths, missing = [], []
    for name in names:
        drawn = _drawn(name, results)
        if drawn is None:
            missing.append(f"{name}: no method{' and full model' * (name == 'equal-cost')} to compare")
            continue
        (figure, caption), path = drawn, folder / f"{name}.{file_format}"
        with rc_context(fname=_STYLE), replacing(path) as temporary:
            if (layout := figure.get_layout_engine()) is not None:  # saving would draw everything twice for it
                layout.execute(figure)
                figure.set_layout_engine(None)
            figure.savefig(temporary, format=file_format, dpi=200, metadata=_METADATA[file_format])
            if file_format == "png":
                with Image.open(temporary) as image:  # 256 colours: a third of the size
                    image.convert("RGB").quantize().save(temporary, file_format, optimize=True)
        write_text(path.with_suffix(".txt"), caption)
        paths.append(path)
    return paths, missing
