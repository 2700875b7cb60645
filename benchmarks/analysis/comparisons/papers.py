"""A paper's table beside ours: theirs as printed, ours at the printed speed-up, each against its own full model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost
from benchmarks.analysis.comparisons.resampled import interval_at_equal_cost
from benchmarks.analysis.panels.published import PublishedResult, published_results
from benchmarks.analysis.panels.results import Panel
from benchmarks.specs.papers import PaperColumn, PaperMethod, PaperTable, PrintedSpeed, PrintedValue

Interval = tuple[float, float]

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Printed:
    """What a paper prints of a method on a task; shares, not percent.

    Attributes:
        score: None where only a difference is printed.
        points: score minus that of the paper's full model; None where that is not printed in the same metric.
        speedup: a ratio; a share of time that is saved becomes 1 / (1 - share).
        result: the quotation.
    """

    score: float | None
    points: float | None
    speedup: float
    result: PublishedResult


@dataclass(frozen=True)
class Ours:
    """One of our curves at the printed speed-up; shares.

    Attributes:
        at: score, points against our full model, layers.
        interval: of the points, see :func:`interval_at_equal_cost`; None where rows are not known.
    """

    at: AtCost
    interval: Interval | None

    def minus(self, printed: Printed) -> float | None:
        """Return our points minus theirs; None unless both are known."""
        if self.at.points is None or printed.points is None:
            return None
        return self.at.points - printed.points

    def interval_minus(self, printed: Printed) -> Interval | None:
        """Return the interval of that: theirs is taken as it is printed."""
        if self.interval is None or printed.points is None:
            return None
        low, high = self.interval
        return low - printed.points, high - printed.points


@dataclass(frozen=True)
class PaperCell:
    """A printed operating point on one task, and our curves there, by label; a curve without records is missing."""

    column: PaperColumn
    printed: Printed
    ours: Mapping[str, Ours]


@dataclass(frozen=True)
class PaperRow:
    """One operating point of a method.

    Attributes:
        method: of the paper.
        labels: our curves for it.
        number, points: which of how many operating points.
        cells: by our name of the task; nothing where the paper prints nothing.
    """

    method: PaperMethod
    labels: tuple[str, ...]
    number: int
    points: int
    cells: Mapping[str, PaperCell]


@dataclass(frozen=True)
class PaperComparison:
    """A table of a paper beside one backbone of ours.

    Attributes:
        table, backbone: which.
        panels: our records by task, scored by the metric of the column; tasks without records are missing.
        rows: in the order of the table.
        command: what makes records that are missing.
    """

    table: PaperTable
    backbone: str
    panels: Mapping[str, Panel]
    rows: tuple[PaperRow, ...]
    command: str


def compare_with_paper(
    table: PaperTable, backbone: str, panels: Sequence[Panel], labels: Sequence[str], *, command: str
) -> PaperComparison:
    """Set a paper's table beside our records.

    Args:
        table: the paper's.
        backbone: ours, as records name it.
        panels: our records, of any task and backbone, one panel of each.
        labels: those of the table's curves that there can be on this backbone.
        command: what makes records that are missing.
    """
    by_task = {panel.task: panel for panel in panels if panel.backbone == backbone}
    scored = {
        column.task: panel
        for column in table.columns
        if column.task in by_task and (panel := scored_by(by_task[column.task], column.metric)) is not None
    }
    rows = [row for method in table.methods for row in _rows(table, method, scored, labels)]
    return PaperComparison(table, backbone, scored, tuple(rows), command)


def scored_by(panel: Panel, metric: str) -> Panel | None:
    """Return a panel whose score is another of the metrics that its records hold; None if they do not hold it."""
    if metric == panel.metric:
        return panel
    if any(metric not in point.scores for cell in panel.cells for point in cell.record.curve_test):
        return None
    cells = [replace(cell, record=cell.record.model_copy(update={"metric": metric})) for cell in panel.cells]
    return Panel(panel.task, panel.backbone, tuple(cells), panel.timings)


def _rows(table: PaperTable, method: PaperMethod, panels: Mapping[str, Panel], labels: Sequence[str]) -> list[PaperRow]:
    own = tuple(label for label in method.ours if label in labels)
    printed = {column.task: printed_points(table, method, column) for column in table.columns}
    points = max(len(found) for found in printed.values())
    columns = {column.task: column for column in table.columns}
    return [
        PaperRow(
            method,
            own,
            number + 1,
            points,
            {
                task: PaperCell(columns[task], found[number], _ours(panels.get(task), own, found[number]))
                for task, found in printed.items()
                if number < len(found)
            },
        )
        for number in range(points)
    ]


def _ours(panel: Panel | None, labels: Sequence[str], printed: Printed) -> dict[str, Ours]:
    if panel is None:
        return {}
    return {
        label: Ours(at_equal_cost(panel, label, printed.speedup), interval_at_equal_cost(panel, label, printed.speedup))
        for label in labels
        if label in panel.methods
    }


def printed_points(table: PaperTable, method: PaperMethod, column: PaperColumn) -> list[Printed]:
    """Return the operating points that a paper prints of a method on a task, in its order."""
    full = printed_full(table, method, column)
    found = []
    for result in _printed(table, method.printed, method.backbone, column):
        value, speedup = _number(result.value), _speedup(table.speed, result)
        if value is None or speedup is None:
            continue
        if table.values is PrintedValue.POINTS:
            found.append(Printed(None, value / 100, speedup, result))
        else:
            points = None if full is None else (value - full) / 100
            found.append(Printed(value / 100, points, speedup, result))
    return found


def printed_full(table: PaperTable, method: PaperMethod, column: PaperColumn) -> float | None:
    """Return the printed score of the full model of a method, in percent; None where there is none in this metric."""
    values = [_number(result.value) for result in _printed(table, method.full, method.backbone, column)]
    return next((value for value in values if value is not None), None)


def _printed(table: PaperTable, method: str, backbone: str, column: PaperColumn) -> list[PublishedResult]:
    wanted = (table.table, method, backbone, column.printed)
    return [
        result
        for result in published_results()
        if (result.table, result.method, result.backbone, result.task) == wanted
        and result.metric in column.printed_metrics
    ]


def _number(text: str) -> float | None:
    """Return the number that a text begins with: of ``83.9/83.0``, matched and mismatched, the first."""
    found = _NUMBER.match(text)
    return float(found[0]) if found else None


def _speedup(speed: PrintedSpeed, result: PublishedResult) -> float | None:
    value = _number(result.speedup)
    if value is None or speed is not PrintedSpeed.TIME_SAVED:
        return value
    return 1 / (1 + value / 100)  # -21% is a fifth of the time saved
