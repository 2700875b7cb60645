"""The critical-difference diagram: mean ranks over tasks, and bars over methods that are not told apart."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.analysis.comparisons.ranking import Ranking, rankings
from benchmarks.analysis.figures.page import COLUMN, TEXT, panel_grid, printed
from benchmarks.analysis.figures.styles import Style, styles
from benchmarks.analysis.panels.results import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR_STEP = 0.03  # between two bars, as a share of the axis


@printed
def ranking_figure(panels: Sequence[Panel], style_of: Mapping[str, Style] | None = None) -> "Figure | None":
    """Draw the mean ranks of both statistics; None with fewer than 2 tasks or 3 methods that all of them have."""
    drawable = rankings(panels)
    if not drawable:
        return None
    style_of = styles(panels) if style_of is None else style_of
    longest = max(len(ranking.table.methods) for ranking in drawable)
    width = TEXT if len(drawable) > 1 else COLUMN
    figure, grid = panel_grid(len(drawable), width=width, height=0.135 * longest + 0.8)
    for axes, ranking in zip(grid, drawable, strict=True):
        _draw_ranks(axes, ranking, style_of)
    return figure


def _draw_ranks(axes: "Axes", ranking: Ranking, style_of: Mapping[str, Style]) -> None:
    methods = ranking.table.methods
    order = sorted(range(len(methods)), key=lambda i: ranking.mean_ranks[i])
    place = {methods[i]: y for y, i in enumerate(order)}
    for i in order:
        style = style_of[methods[i]]
        colour = style.colour if style.named else "0.6"
        axes.plot([1, ranking.mean_ranks[i]], [place[methods[i]]] * 2, color="0.9", linewidth=0.7, zorder=1)
        axes.plot(ranking.mean_ranks[i], place[methods[i]], marker="o", color=colour, markersize=3.5, zorder=3)
    right = len(methods) + 0.5
    for number, group in enumerate(ranking.groups):
        at = right + _BAR_STEP * (number + 0.5) * right
        axes.plot([at, at], [place[group[0]] - 0.2, place[group[-1]] + 0.2], color="0.5", linewidth=1.6, zorder=2)
    axes.set_yticks(range(len(order)), [methods[i] for i in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0.8, right * (1 + _BAR_STEP * len(ranking.groups)))
    axes.set_xticks(range(1, len(methods) + 1, max(1, len(methods) // 8)))
    axes.set_xlabel(f"mean rank over {len(ranking.table.blocks)} tasks")
    axes.set_title(f"{ranking.table.statistic}\n(critical difference {ranking.critical_difference:.1f})")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
