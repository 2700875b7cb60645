"""The critical-difference diagram: mean ranks over tasks, and bars over methods that are not told apart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.analysis.comparisons.ranking import AREA, HALF_BUDGET, Ranking, rank, score_table
from benchmarks.analysis.figures.grids import panel_grid
from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.results import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR_STEP = 0.03  # between two bars, as a share of the axis


def ranking_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw the mean ranks of both statistics; None with fewer than 2 tasks or 3 methods that all of them have."""
    rankings = [rank(score_table(panels, statistic)) for statistic in (AREA, HALF_BUDGET)]
    drawable = [ranking for ranking in rankings if ranking is not None]
    if not drawable:
        return None
    longest = max(len(ranking.table.methods) for ranking in drawable)
    figure, grid = panel_grid(len(drawable), columns=2, width=5.2, height=0.24 * longest + 1.5)
    for axes, ranking in zip(grid, drawable, strict=True):
        _draw_ranks(axes, ranking)
    return figure


def _draw_ranks(axes: "Axes", ranking: Ranking) -> None:
    import seaborn

    methods = ranking.table.methods
    order = sorted(range(len(methods)), key=lambda i: ranking.mean_ranks[i])
    place = {methods[i]: y for y, i in enumerate(order)}
    for i in order:
        colour = "#0173b2" if is_core(methods[i]) else "0.3"
        axes.plot([1, ranking.mean_ranks[i]], [place[methods[i]]] * 2, color="0.88", linewidth=0.8, zorder=1)
        axes.plot(ranking.mean_ranks[i], place[methods[i]], marker="o", color=colour, markersize=5, zorder=3)
    right = len(methods) + 0.5
    for number, group in enumerate(ranking.groups):
        at = right + _BAR_STEP * (number + 0.5) * right
        axes.plot([at, at], [place[group[0]] - 0.2, place[group[-1]] + 0.2], color="0.5", linewidth=2.5, zorder=2)
    axes.set_yticks(range(len(order)), [methods[i] for i in order])
    axes.invert_yaxis()
    axes.set_xlim(0.8, right * (1 + _BAR_STEP * len(ranking.groups)))
    axes.set_xticks(range(1, len(methods) + 1, max(1, len(methods) // 8)))
    axes.set_xlabel(
        f"mean rank over {len(ranking.table.blocks)} tasks; critical difference {ranking.critical_difference:.1f}"
    )
    axes.set_title(ranking.table.statistic, fontsize=10)
    axes.tick_params(axis="y", length=0)
    seaborn.despine(ax=axes, left=True)
