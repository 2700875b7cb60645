"""The tables of methods at equal cost: means over tasks at every budget, tests, and task by task at the middle one."""

from collections.abc import Callable, Sequence

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.headline import Contrast, Entry, Headline, contrasts, core_pairs, headline
from benchmarks.analysis.comparisons.ranking import block_name
from benchmarks.analysis.comparisons.savings import mean_saving
from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.tables.columns import OVER_NOTE, UNDER_NOTE, in_brackets, percent, points, reach_marks
from benchmarks.analysis.tables.overall import task_headings
from benchmarks.analysis.tables.text import MISSING, TextTable, p_value

POINTS_NOTE = (
    "Points: test score minus the full model's, mean of the seeds. At a speed-up s, the two knobs of the concave hull "
    "of all validation points (of all cells of a grid) between which L / s layers lie are mixed to cost exactly that; "
    "the same mixture is scored on test rows."
)
TEXT_POINTS_NOTE = (
    "Points: test score minus the full model's, mean of the seeds; kept: the score as a share of the full model's. At "
    "a speed-up s, the two decoded knobs of the concave hull between which L / s layers a token lie are mixed to cost "
    "exactly that on validation prompts: a prompt takes the first with a fixed probability. Each half of the prompts "
    "is scored at the knobs that the texts of the other half have chosen."
)
_INTERVAL_NOTE = (
    "In brackets: 95% paired bootstrap intervals, over rows within tasks and over seeds; of one seed they say nothing "
    "of another training, and of two they say less than is true."
)
NO_ROWS_NOTE = (
    "Intervals, and what follows from them, are missing where records are older than the answers that they need, and "
    "for scores of ranks."
)


def headline_tables(panels: Sequence[AnyPanel]) -> list[TextTable]:
    """Return what methods reach at equal cost, and of several tasks the tests; those of one are beside its points."""
    of = headline(panels)
    several = of is not None and len(of.panels) > 1
    return [*equal_cost_tables(panels), *(contrast_tables(panels) if several else [])]


def equal_cost_tables(panels: Sequence[AnyPanel]) -> list[TextTable]:
    """Return the means over tasks where there are several, and the table by task; nothing without the full model.

    Means are over the tasks that (nearly) all methods are defined for, see ``compared_panels``.
    """
    found = headline(panels)
    if found is None:
        return []
    means = [means_table(found)] if len(found.panels) > 1 else []
    return [*means, points_by_task(found, panels)]


def means_table(of: Headline) -> TextTable:
    """Return the means over tasks of every method at every budget, best at the middle one first."""
    return _means_table(of, "within 1 point", lambda label: _saving_cell(of, label), [POINTS_NOTE], [_SAVING_NOTE])


def text_means_table(of: Headline) -> TextTable:
    """Return the same of generation, with what is kept of the score in the place of what a point costs."""
    return _means_table(
        of,
        f"kept % {' / '.join(f'{speedup:g}x' for speedup in of.speedups)}",
        lambda label: " / ".join(percent(of.entries[label, speedup].kept) for speedup in of.speedups),
        [TEXT_POINTS_NOTE],
        [],
    )


def _means_table(
    of: Headline, last: str, cell: Callable[[str], str], how: Sequence[str], of_last: Sequence[str]
) -> TextTable:
    """Return the means over tasks.

    Args:
        of: the comparison.
        last, cell: heading and text of the last column, by curve.
        how: how points are found.
        of_last: what is to be said of the last column, where something is known of it.
    """
    lasts = {label: cell(label) for label in of.methods}
    against_static = any(of.entries[label, of.middle].above_static is not None for label in of.methods)
    seeds = {label: of.entries[label, of.middle].seeds for label in of.methods}
    differ = len(set(seeds.values())) > 1
    return TextTable(
        title=f"Points against the full model at equal cost, mean of {len(of.panels)} tasks",
        headings=(
            "method",
            *(["seeds"] if differ else []),
            *(f"at {speedup:g}x" for speedup in of.speedups),
            f"layers {of.middle:g}x",
            "mean ranks",
            f"over static {of.middle:g}x",
            last,
        ),
        cells=tuple(
            (
                label,
                *([str(seeds[label])] if differ else []),
                *(_points_cell(of.entries[label, speedup]) for speedup in of.speedups),
                f"{of.entries[label, of.middle].layers:.2f}",
                " / ".join(f"{of.entries[label, speedup].rank:.1f}" for speedup in of.speedups),
                _static_cell(of.entries[label, of.middle]),
                lasts[label],
            )
            for label in of.methods
        ),
        notes=(
            f"Tasks: {', '.join(map(block_name, of.panels))}.",
            *([f"Without a mean, for want of some task: {', '.join(of.missing)}."] if of.missing else []),
            *([_SEEDS_NOTE] if differ else []),
            *how,
            f"Layers: of test rows, mean over tasks, where {_mean_budget(of)} are allowed. Where even the best knob of "
            f"a task costs less than a budget, it stands there. {OVER_NOTE} on some task.",
            "Ranks: of points, at the three budgets, means over tasks, 1 is best, among methods that all tasks have.",
            *([_INTERVAL_NOTE] if of.samples else []),
            *([_STATIC_NOTE] if against_static else []),
            *([] if set(lasts.values()) <= {MISSING} else of_last),
            *([NO_ROWS_NOTE] if of.lacks_rows else []),
        ),
        words=("method",),
    )


def _mean_budget(of: Headline) -> str:
    return f"{sum(panel.num_layers for panel in of.panels) / len(of.panels) / of.middle:.2f}"


_SEEDS_NOTE = "Seeds: of the task that has fewest. Each method is set against the full models of its own seeds."
_STATIC_NOTE = (
    "Over static: tasks where the interval of the difference to a static exit that may run as many layers of test rows "
    "lies above / below 0; what can only cost more than the budget is not above."
)
_SAVING_NOTE = (
    "Within 1 point: the fewest layers at which the lower bound of the difference on validation rows is above -1 point "
    "(all layers where nothing less was shown), and the points there, on test rows."
)


def _points_cell(entry: Entry) -> str:
    mark = reach_marks([Reach.OVER]) if entry.is_over else ""
    return f"{100 * entry.points:+.1f}{mark}{in_brackets(entry.interval)}"


def _static_cell(entry: Entry) -> str:
    return MISSING if entry.above_static is None else f"{entry.above_static} / {entry.below_static}"


def _saving_cell(of: Headline, label: str) -> str:
    found = mean_saving(of.panels, label)
    return MISSING if found is None else f"{found.layers:.2f} layers, {100 * found.points:+.1f}"


def contrast_tables(panels: Sequence[AnyPanel]) -> list[TextTable]:
    """Return the tests of the core method's variants against peers at the middle budget, where any can be made.

    Of a single task there are none over tasks, and the columns for them are left out.
    """
    of = headline(panels)
    pairs = [] if of is None else core_pairs(of, of.middle)
    if of is None or not pairs or (len(of.panels) < 2 and not of.samples):
        return []
    found = contrasts(of, pairs, of.middle)
    several = len(of.panels) > 1
    over = f", over {len(of.panels)} tasks" if several else f" · {block_name(of.panels[0])}"
    of_tasks = ("wins / losses", "p, tasks", "Holm, tasks") if several else ()
    return [
        TextTable(
            title=f"Tests at {of.middle:g}x{over}",
            headings=("method", "against", "points", "p, rows", "Holm", *of_tasks),
            cells=tuple(_contrast_cells(contrast)[: 5 + len(of_tasks)] for contrast in found),
            notes=(
                f"Points: difference of {'the means over tasks' if several else 'the scores'}"
                f"{'' if of.lacks_rows else ', with its 95% interval'}. p, rows: paired bootstrap over rows and seeds"
                + (" of these tasks; p, tasks: Wilcoxon's signed-rank test over tasks; both" if several else ";")
                + f" two-sided, corrected by Holm's procedure for {len(found)} tests.",
                "The last line is the best variant with the best peer by these very scores, which flatters both.",
            ),
            words=("method", "against"),
        )
    ]


def _contrast_cells(contrast: Contrast) -> tuple[str, ...]:
    p_values = (contrast.p_value, contrast.holm_p_value, contrast.tasks_p_value, contrast.holm_tasks_p_value)
    of_rows, holm_rows, of_tasks, holm_tasks = (MISSING if value is None else p_value(value) for value in p_values)
    return (
        contrast.first,
        contrast.second,
        points(contrast.difference, contrast.interval),
        of_rows,
        holm_rows,
        f"{contrast.wins} / {contrast.losses}",
        of_tasks,
        holm_tasks,
    )


def headline_lines(panels: Sequence[AnyPanel]) -> list[dict[str, object]]:
    """Return a line for every method and budget, as ``headline.csv`` has them; points, not shares. See ``Entry``."""
    found = headline(panels)
    if found is None:
        return []
    lines: list[dict[str, object]] = []
    for label in found.methods:
        saved = mean_saving(found.panels, label)
        for speedup in found.speedups:
            entry = found.entries[label, speedup]
            low, high = entry.interval or (None, None)
            lines.append(
                {
                    "method": label,
                    "budget": speedup,
                    "points": _points(entry.points),
                    "low": _points(low),
                    "high": _points(high),
                    "rank": round(entry.rank, 3),
                    "tasks": len(found.panels),
                    "seeds": entry.seeds,
                    "layers": round(entry.layers, 4),
                    "above_static": "" if entry.above_static is None else entry.above_static,
                    "below_static": "" if entry.below_static is None else entry.below_static,
                    "layers_within_1_point": "" if saved is None else round(saved.layers, 4),
                    "points_within_1_point": _points(None if saved is None else saved.points),
                    **{name: round(ratio, 4) for name, ratio in entry.speedups.items()},
                }
            )
    return lines


def _points(share: float | None) -> float | str:
    return "" if share is None else round(100 * share, 4)


def points_by_task(of: Headline, panels: Sequence[AnyPanel]) -> TextTable:
    """Return the points at the middle budget of every curve, on every task that has the full model."""
    known = [panel for panel in panels if panel.full_label is not None]
    return TextTable(
        title=f"Points against the full model at {of.middle:g}x, task by task",
        headings=("method", *task_headings(known)),
        cells=tuple(
            (label, *(_task_cell(panel, label, of.middle) for panel in known)) for label in (*of.methods, *of.missing)
        ),
        notes=(OVER_NOTE + UNDER_NOTE,),
        words=("method",),
    )


def _task_cell(panel: AnyPanel, label: str, speedup: float) -> str:
    if label not in panel.methods:
        return MISSING
    found = at_equal_cost(panel, label, speedup)
    return MISSING if found.points is None else f"{100 * found.points:+.1f}{reach_marks(found.reaches)}"
