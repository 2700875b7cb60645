"""The leaderboard: one row a method, means over tasks; and its points task by task."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.headline import Entry, Headline, headline
from benchmarks.analysis.comparisons.ranking import compared_panels
from benchmarks.analysis.comparisons.savings import mean_saving
from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.panels.means import geometric_mean_of_all
from benchmarks.analysis.panels.results import FULL, MAJORITY, ORACLE, AnyPanel, role_of
from benchmarks.analysis.report.contents.sortable import Cell, SortableTable, counted, number, ratio, with_interval
from benchmarks.analysis.tables.columns import OVER_NOTE, UNDER_NOTE, reach_marks
from benchmarks.analysis.tables.overall import task_headings


def leaderboard(panels: Sequence[AnyPanel]) -> SortableTable:
    """Return one row a method, the best at the middle budget first; without a full model, scores and costs alone."""
    of = headline(panels)
    compared = compared_panels(panels) if of is None else list(of.panels)
    methods = {label: method for panel in compared for label, method in panel.methods.items()}
    labels = _labels(compared, of)
    sizes = sorted({size for panel in compared for size in panel.batch_sizes})
    points = [f"points at {speedup:g}x" for speedup in of.speedups] if of else []
    at_equal = [*points, f"rank at {of.middle:g}x", "over static", "within 1 point"] if of else []
    return SortableTable(
        name="leaderboard",
        title=f"{counted(len(labels), 'method')}, means over {counted(len(compared), 'task')}",
        headings=("method", *at_equal, "score %", "layers saved %", *(f"clock, batch {size}" for size in sizes)),
        rows=[
            (Cell(label), *(_cells_at_equal_cost(of, label) if of else ()), *_cells_at_middle(compared, label, sizes))
            for label in labels
        ],
        notes=(*(_equal_cost_notes(of) if of else ()), _MIDDLE_NOTE),
        core=frozenset(place for place, label in enumerate(labels) if is_core(methods[label])),
    )


_MIDDLE_NOTE = (
    "Score, layers saved and clock (stock model's time / method's, geometric mean over tasks; n/a where a knob of the "
    "mixture was not timed) are at the middle budget, on test rows."
)


def _equal_cost_notes(of: Headline) -> Iterator[str]:
    """Yield how to read the columns at equal cost of which something is known."""
    yield f"{OVER_NOTE} on some task, and it stands there. Rank: mean over tasks, 1 is best."
    if any(entry.above_static is not None for entry in of.entries.values()):
        yield (
            f"Over static, at {of.middle:g}x: tasks where the interval of the difference to a static exit that may run "
            "as many layers lies above / below 0."
        )
    if any(mean_saving(of.panels, label) for label in of.methods):
        yield "Within 1 point: the fewest layers, on test rows, of which validation rows show that they lose less."


def _labels(panels: Sequence[AnyPanel], of: Headline | None) -> list[str]:
    """Return the full model, then the curves that all compared tasks have, the best at the middle budget first."""
    found = {label: method for panel in panels for label, method in panel.methods.items()}
    full = [label for label, method in found.items() if role_of(method) == FULL]
    if of is not None:
        return [*full, *of.methods]
    curves = [label for label, method in found.items() if role_of(method) not in (FULL, ORACLE, MAJORITY)]
    return [*full, *(label for label in curves if all(label in panel.methods for panel in panels))]


def _cells_at_equal_cost(of: Headline, label: str) -> list[Cell]:
    entries = [of.entries.get((label, speedup)) for speedup in of.speedups]
    middle = of.entries.get((label, of.middle))
    saved = mean_saving(of.panels, label) if middle else None
    return [
        *map(_points_cell, entries),
        number(middle.rank if middle else None, ".1f"),
        _static_cell(middle),
        number(saved.layers if saved else None),
    ]


def _points_cell(entry: Entry | None) -> Cell:
    if entry is None:
        return number(None)
    return with_interval(entry.points, entry.interval, "+.1f", "†" if entry.is_over else "")


def _static_cell(entry: Entry | None) -> Cell:
    if entry is None or entry.above_static is None or entry.below_static is None:
        return number(None)
    return Cell(f"{entry.above_static} / {entry.below_static}", entry.above_static - entry.below_static)


def _cells_at_middle(panels: Sequence[AnyPanel], label: str, sizes: Sequence[int]) -> list[Cell]:
    found = [at_equal_cost(panel, label, panel.speedups[1]) for panel in panels]
    saved = [1 - one.layers / panel.num_layers for one, panel in zip(found, panels, strict=True)]
    return [
        number(100 * float(np.mean([one.score for one in found])), ".1f"),
        number(100 * float(np.mean(saved)), ".0f"),
        *(ratio(geometric_mean_of_all([one.time_ratios.get(size) for one in found])) for size in sizes),
    ]


def points_by_task(panels: Sequence[AnyPanel]) -> SortableTable | None:
    """Return the points against the full model at the middle budget; None without a full model."""
    of = headline(panels)
    if of is None:
        return None
    known = [panel for panel in panels if panel.full_label is not None]
    methods = {label: method for panel in known for label, method in panel.methods.items()}
    labels = [*of.methods, *of.missing]
    return SortableTable(
        name="by-task",
        title=f"Points against the full model at {of.middle:g}x, task by task",
        headings=("method", *task_headings(known)),
        rows=[(Cell(label), *(_task_cell(panel, label, of.middle) for panel in known)) for label in labels],
        notes=(OVER_NOTE + UNDER_NOTE,),
        core=frozenset(place for place, label in enumerate(labels) if is_core(methods[label])),
    )


def _task_cell(panel: AnyPanel, label: str, speedup: float) -> Cell:
    found = at_equal_cost(panel, label, speedup) if label in panel.methods else None
    if found is None or found.points is None:
        return number(None)
    return number(100 * found.points, "+.1f", reach_marks(found.reaches))
