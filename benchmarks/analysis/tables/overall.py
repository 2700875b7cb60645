"""Tables over all tasks: ranks, points over a static exit that may cost as much, and how well layers predict time."""

from collections.abc import Sequence
from itertools import compress

from benchmarks.analysis.comparisons.ranking import (
    PairOverTasks,
    Ranking,
    block_name,
    compared_panels,
    pairs_over_tasks,
    rankings,
)
from benchmarks.analysis.comparisons.real_time import ClockSummary, clock_summary, measured_speedups
from benchmarks.analysis.comparisons.static_gains import StaticGain, mean_gain, static_gains
from benchmarks.analysis.panels.results import CORE_METHOD, AnyPanel, Panel
from benchmarks.analysis.tables.columns import OVER_NOTE, UNDER_NOTE, number, reach_marks
from benchmarks.analysis.tables.text import MISSING, TextTable, p_value


def overall_tables(panels: Sequence[Panel]) -> list[TextTable]:
    """Return the tables over all tasks that have anything to say."""
    tables = [static_gain_table(panels), clock_table(panels)]
    return [*ranking_tables(panels), *(table for table in tables if table is not None)]


def ranking_tables(panels: Sequence[Panel]) -> list[TextTable]:
    """Return the ranks over tasks, one table a statistic; nothing with fewer than 2 tasks or 3 methods."""
    return [_ranking_table(ranking) for ranking in rankings(panels)]


def _ranking_table(ranking: Ranking) -> TextTable:
    """Return the ranks, with tests of the core method against every other, unless some task lacks its label."""
    table = ranking.table
    pairs = {pair.second: pair for pair in pairs_over_tasks(table)}
    order = sorted(range(len(table.methods)), key=lambda i: ranking.mean_ranks[i])
    blocks = len(table.blocks)
    return TextTable(
        title=f"Ranks over {blocks} tasks · {table.statistic}",
        headings=("method", "mean rank", "mean %", *(_PAIR_HEADINGS if pairs else ())),
        cells=tuple(
            (
                table.methods[i],
                f"{ranking.mean_ranks[i]:.2f}",
                f"{100 * table.scores[:, i].mean():.1f}",
                *(_pair_cells(pairs.get(table.methods[i])) if pairs else ()),
            )
            for i in order
        ),
        notes=(
            f"Ranks: 1 is best; Friedman's test of no difference at all: p = {p_value(ranking.friedman_p)}; Nemenyi's "
            f"critical difference at 5%: {ranking.critical_difference:.2f} ranks.",
            "Not told apart by it: " + "; ".join(" = ".join(group) for group in ranking.groups) + "."
            if ranking.groups
            else "All neighbours are told apart by it.",
            f"{_pairs_note(len(pairs), blocks) if pairs else ''}Scores are averaged over seeds first.",
            *((f"Left out, because some task lacks them: {', '.join(table.left_out)}.",) if table.left_out else ()),
            *(
                (f"Tasks left out, because most methods are missing there: {', '.join(table.blocks_left_out)}.",)
                if table.blocks_left_out
                else ()
            ),
        ),
        words=("method",),
    )


_PAIR_HEADINGS = (f"{CORE_METHOD} wins", "loses", "median, points", "p", "p, Holm")


def _pairs_note(tests: int, blocks: int) -> str:
    return (
        f"Wins, loses: tasks where {CORE_METHOD} scores above, below; p: Wilcoxon's signed-rank test over tasks, "
        f"two-sided (with {blocks} tasks at least {2.0 ** (1 - blocks):.2g}); Holm: corrected for {tests} tests. "
    )


def _pair_cells(pair: PairOverTasks | None) -> tuple[str, ...]:
    if pair is None:
        return (MISSING,) * len(_PAIR_HEADINGS)
    return (
        str(pair.wins),
        str(pair.losses),
        f"{100 * pair.difference:+.1f}",
        p_value(pair.p_value),
        p_value(pair.holm_p_value),
    )


def static_gain_table(panels: Sequence[AnyPanel]) -> TextTable | None:
    """Return every curve's points over a static exit at the middle budget, by task; None without static exits."""
    if not panels:
        return None
    middle = panels[0].speedups[1]
    gains = [static_gains(panel, middle) for panel in panels]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.labels))
    labels = [label for label in labels if any(label in found for found in gains)]
    if not labels:
        return None
    compared = list(map(block_name, compared_panels(panels)))
    columns = [block_name(panel) in compared for panel in panels]
    left_out = [panel.task for panel in panels if block_name(panel) not in compared]
    return TextTable(
        title=f"Points over a static exit at {middle:g}x, task by task",
        headings=(
            "method",
            *task_headings(panels),
            "mean",
            "above / below",
        ),
        cells=tuple((label, *_gain_cells([found.get(label) for found in gains], columns)) for label in labels),
        notes=(
            "The method's test score minus that of a static exit that may run as many layers of test rows, in "
            f"points of the task's metric, mean of the seeds. {OVER_NOTE}{UNDER_NOTE}",
            "*: the 95% paired bootstrap interval, over rows and seeds, lies above or below 0, above only at no "
            "more than the budget; not corrected for the number of cells. Above / below: tasks with such an interval.",
            *((f"The mean leaves out {', '.join(left_out)}: most methods are missing there.",) if left_out else ()),
        ),
        words=("method",),
    )


def task_headings(panels: Sequence[AnyPanel]) -> list[str]:
    """Return one heading a panel: the task, and the backbone where there are several."""
    several_backbones = len({panel.backbone for panel in panels}) > 1
    return [block_name(panel) if several_backbones else panel.task for panel in panels]


def _gain_cells(gains: Sequence[StaticGain | None], compared: Sequence[bool]) -> tuple[str, ...]:
    known = [gain for gain in gains if gain is not None]
    mean = mean_gain(list(compress(gains, compared)))
    signs = [gain.beyond_noise for gain in known]
    cells = [MISSING if gain is None else f"{gain.text}{reach_marks(gain.reaches)}" for gain in gains]
    return (*cells, MISSING if mean is None else f"{100 * mean:+.1f}", f"{signs.count(1)} / {signs.count(-1)}")


def clock_table(panels: Sequence[Panel]) -> TextTable | None:
    """Return how measured speed-up compares with L / average layers, method by method; None if nothing was timed."""
    sizes = sorted({size for panel in panels for size in panel.batch_sizes})
    if not sizes:
        return None
    points = {size: [point for panel in panels for point in measured_speedups(panel, size)] for size in sizes}
    labels = list(dict.fromkeys(label for panel in panels for label in panel.labels))
    summaries = {"all": [clock_summary(points[size]) for size in sizes]}
    for label in labels:
        summaries[label] = [clock_summary([p for p in points[size] if p[0] == label]) for size in sizes]
    columns = [(f"kept b{size}", f"5% to 95% b{size}", f"Spearman b{size}") for size in sizes]
    return TextTable(
        title="Measured speed-up and layers",
        headings=("method", "points", *(heading for names in columns for heading in names)),
        cells=tuple(
            (label, str(max(s.points for s in found if s)), *(cell for one in found for cell in _clock_cells(one)))
            for label, found in summaries.items()
            if any(found)
        ),
        notes=(
            "Kept: measured speed-up / L divided by average layers of the timed rows, the median over all timed "
            "operating points of all tasks and seeds, and the range of nine in ten; 1.00 where the clock saves what "
            "the layers promise. Spearman: rank correlation of the two. b = batch size.",
        ),
        words=("method",),
    )


def _clock_cells(summary: ClockSummary | None) -> tuple[str, str, str]:
    if summary is None:
        return (MISSING,) * 3
    return f"{summary.kept:.2f}", f"{summary.low:.2f} to {summary.high:.2f}", number(summary.correlation)
