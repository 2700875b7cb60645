"""All figures of a results folder: what each shows, in words too, and which files it is in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import joblib

from benchmarks.analysis.figures import curves as plots
from benchmarks.analysis.figures import exits as exit_plots
from benchmarks.analysis.figures import gains as gain_plots
from benchmarks.analysis.figures import ranks as rank_plots
from benchmarks.analysis.figures import speeds as speed_plots
from benchmarks.analysis.figures.equal_cost import equal_cost_figure
from benchmarks.analysis.figures.page import pages_of, save_figure
from benchmarks.analysis.figures.styles import Style, styles
from benchmarks.analysis.panels.results import Panel, load_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Attributes:
        name: of its files, without ending; of several figures they end in -1, -2, ....
        title: short.
        shows: what is drawn, for a reader who may not see it.
        missing: why it cannot be drawn, where it cannot.
        draw: (panels, style of every curve) -> figure, or None where the records lack what it needs.
        by_task: it has a panel a task: many tasks make several figures.
        effort: how long it takes, in tenths of a second for eleven tasks: by this, processes share the figures.
    """

    name: str
    title: str
    shows: str
    missing: str
    draw: "Callable[[Sequence[Panel], Mapping[str, Style]], Figure | None]"
    by_task: bool = False
    effort: int = 1

    def figures(self, panels: Sequence[Panel], style_of: Mapping[str, Style]) -> "list[Figure]":
        """Return its figures, none where the records lack what it needs."""
        pages = pages_of(panels) if self.by_task else [panels]
        drawn = [self.draw(page, style_of) for page in pages]
        return [figure for figure in drawn if figure is not None]


CURVES = FigureKind(
    "curves",
    "Score against layers",
    "For every task, the test score against average layers. Lines join the knobs on a method's validation hull, "
    "markers are the mixtures for 1.5x, 2x and 3x; the horizontal line is the full model, the band its 95% "
    "interval. The five leading methods, ours and the references are told apart, the others are grey.",
    "",
    plots.figure,
    by_task=True,
    effort=9,
)
FIGURES = (
    FigureKind(
        "equal-cost",
        "Points at equal cost",
        "Points against the full model over the speed-up in layers, means over tasks: at every cost the two knobs of a "
        "method's validation hull that are mixed to meet it, scored on test rows. The five leading methods, ours and "
        "the references are told apart, the others are grey. The numbers are in the tables.",
        "The full model was not run.",
        equal_cost_figure,
        effort=6,
    ),
    CURVES,
    FigureKind(
        "times",
        "Score against time",
        "For every task, the test score against milliseconds a row at batch size 1: the operating points that were "
        "timed, joined. The star is the stock model, the horizontal line its score, the band its 95% interval.",
        "Nothing was timed at batch size 1.",
        plots.times_figure,
        by_task=True,
        effort=11,
    ),
    FigureKind(
        "gains",
        "Points over a static exit",
        "For every method and task, the test score minus that of a static exit that may run as many layers, in points, "
        "at the middle budget; methods with the best mean first. *: the 95% interval excludes 0. The numbers are in "
        "the tables.",
        "Static exits were not run.",
        lambda panels, _: gain_plots.gains_figure(panels),
        effort=12,
    ),
    FigureKind(
        "methods",
        "Method by method",
        "One panel a method, of the ten strongest: points won or lost against the full model over the share of the "
        "layers, along the validation hull. Thin lines are tasks, the thick line is their mean, grey lines are the "
        "means of all methods.",
        "The full model was not run.",
        speed_plots.methods_figure,
        effort=6,
    ),
    FigureKind(
        "exits",
        "Exit layers",
        "For every task and every method that is told apart, the percentage of test rows that exit at each layer, at "
        "the knob chosen for half of the layers; after the name, the average layer.",
        "No method has a knob within half of the layers.",
        exit_plots.exit_histogram_figure,
        by_task=True,
        effort=7,
    ),
    FigureKind(
        "memorized",
        "Exit layer against Memorized Layer",
        "For test rows of each Memorized Layer (the first from which on every classifier is right, the last one for "
        "rows that it gets wrong; in brackets, how many rows of all tasks), the percentage that exits at each layer, "
        "at the knob chosen for half of the layers. Left of the diagonal rows leave too early, right of it they waste "
        "layers.",
        "These records do not hold what every layer answers; cells that are computed anew do.",
        exit_plots.memorized_figure,
        effort=4,
    ),
    FigureKind(
        "speedups",
        "Allowed and measured speed-up",
        "Every timed operating point of all tasks: the speed-up that its layers allow (L / average layers) and the one "
        "that the clock measured, at each batch size. On the diagonal both are equal.",
        "Nothing was timed.",
        speed_plots.speedup_figure,
        effort=3,
    ),
    FigureKind(
        "policy",
        "Exit probability by layer",
        "For every task, the probability of exit that ConsistentEE's policies give to test rows at each layer: the "
        "median, and the band from the 25% to the 75% quantile, at the knob chosen for half of the layers.",
        "These records do not hold the policies' probabilities; cells that are computed anew do.",
        exit_plots.policy_figure,
        by_task=True,
        effort=7,
    ),
    FigureKind(
        "ranks",
        "Ranks over tasks",
        "Mean rank of every method over tasks, best first. Vertical bars join methods that Nemenyi's test at 5% does "
        "not tell apart.",
        "Ranks need at least two tasks and three methods that were run on all of them.",
        rank_plots.ranking_figure,
        effort=8,
    ),
)


def write_figures(
    out_dir: Path,
    labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    *,
    to: Path,
    processes: int = 1,
    kinds: Sequence[str] = ("png",),
) -> tuple[list[Path], list[str]]:
    """Write every figure of a results folder into the folder ``to``.

    ``labels``, ``tasks`` and errors are those of :func:`benchmarks.analysis.panels.results.load_panels`, ``kinds``
    those of ``save_figure``. Several processes share the figures, and each reads the records itself.

    Returns:
        The files, and one line for each figure that could not be drawn.
    """
    shares = _shares(min(processes, len(FIGURES)))
    written = joblib.Parallel(n_jobs=len(shares))(
        joblib.delayed(_write_share)(out_dir, labels, tasks, share, to=to, kinds=kinds) for share in shares
    )
    of_figure = {name: paths for share in written for name, paths in share.items()}
    paths = [path for kind in FIGURES for path in of_figure[kind.name]]
    return paths, [f"{kind.name}: {kind.missing}" for kind in FIGURES if not of_figure[kind.name]]


def _shares(processes: int) -> list[list[FigureKind]]:
    """Share the figures so that all processes are done at about the same time: the largest first, to the idlest."""
    shares: list[list[FigureKind]] = [[] for _ in range(processes)]
    for kind in sorted(FIGURES, key=lambda kind: -kind.effort):
        min(shares, key=lambda share: sum(one.effort for one in share)).append(kind)
    return shares


def _write_share(
    out_dir: Path,
    labels: Sequence[str] | None,
    tasks: Sequence[str] | None,
    share: Sequence[FigureKind],
    *,
    to: Path,
    kinds: Sequence[str],
) -> dict[str, list[Path]]:
    """Write some figures: the files of each, none where the records cannot show it."""
    panels, _ = load_panels(out_dir, labels, tasks)
    style_of = styles(panels)
    return {kind.name: save_pages(kind, kind.figures(panels, style_of), to, kinds) for kind in share}


def save_pages(
    kind: FigureKind, figures: "Sequence[Figure]", out_dir: Path, kinds: Sequence[str] = ("png",)
) -> list[Path]:
    """Write figures of one kind: ``NAME.png``, or of several ``NAME-1.png``, ...."""
    several = len(figures) > 1
    names = [f"{kind.name}-{page}" if several else kind.name for page in range(1, len(figures) + 1)]
    written = [
        save_figure(figure, out_dir, name, kinds, title=kind.title, shows=kind.shows)
        for figure, name in zip(figures, names, strict=True)
    ]
    return [path for paths in written for path in paths]
