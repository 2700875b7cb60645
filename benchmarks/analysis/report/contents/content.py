"""What a report shows, whatever the kind of results: standings, operating points, curves, exits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.report.contents.sortable import SortableTable
from benchmarks.analysis.rows.base import BaseRow
from benchmarks.analysis.rows.caveats import Caveat
from benchmarks.analysis.tables.text import TextTable
from benchmarks.store.folders import Fault

Interval = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """What a curve reaches at one budget, mean over the compared tasks.

    Attributes:
        label, method: the curve, and the method behind it.
        budget: in the words of a reader: ``2x``.
        points: lost (below 0) or won against the full model.
        interval: of ``points``, 95%, where it is known.
        layers: average layers of test rows.
        marks: what is to be said of it, explained in the notes.
    """

    label: str
    method: str
    budget: str
    points: float
    interval: Interval | None
    layers: float
    marks: str = ""


@dataclass(frozen=True)
class Headline:
    """The standings of all curves at all budgets, and how to read them.

    Attributes:
        title: what is compared, over which tasks.
        against: what points are lost against.
        budgets: what budgets are of.
        standings: by curve, the budgets of each in the same order.
        notes: how they are found.
    """

    title: str
    against: str
    budgets: str
    standings: Sequence[Standing]
    notes: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """An operating point on the test rows of one (task, backbone).

    Attributes:
        row: its curve, knob, targets and costs.
        score, interval: the task's score, and its 95% interval, as shares.
        milliseconds: of a row, or of a decoded token, by batch size.
        match: share of the decoded tokens that are the full model's; None where nothing is decoded.
    """

    row: BaseRow
    score: float
    interval: Interval
    milliseconds: dict[int, float]
    match: float | None = None


@dataclass(frozen=True)
class Swept:
    """One value of a knob on test rows, means of the seeds.

    Attributes:
        knob: its name and value.
        layers, score: average layers, and the score as a share.
        shares: costs as shares of the full model's, where they are known: ``flops``, ``b1``, ... (time by batch size).
    """

    knob: str
    layers: float
    score: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Exits:
    """Where rows exit at the knob for half of the layers: the share of them at layer 1, 2, ...."""

    label: str
    method: str
    layers: float
    shares: Sequence[float]


@dataclass(frozen=True)
class Content:
    """What is shown of one kind of results.

    Attributes:
        unit: what exits: ``row``, ``decoded token``.
        load: (folder, labels or None) -> panels and faults.
        headline: None where there is no full model to compare with, or no curve that all tasks have.
        full: the label of the stock model among the operating points.
        leaderboard: one row a method, means over tasks.
        by_task: one row a method, one column a task.
        measured: the operating points of a panel, the stock model's first where there is one.
        swept: (panel, label) -> its whole knob on test rows; nothing where test rows met operating points alone.
        exits: of a panel.
        more: tables that go deeper.
        how: how a panel was measured.
        warnings: what a reader should know before trusting a panel.
    """

    unit: str
    full: str
    load: Callable[[Path, Sequence[str] | None], tuple[list[AnyPanel], list[Fault]]]
    headline: Callable[[Sequence[AnyPanel]], Headline | None]
    leaderboard: Callable[[Sequence[AnyPanel]], SortableTable]
    by_task: Callable[[Sequence[AnyPanel]], SortableTable | None]
    measured: Callable[[AnyPanel], list[Measured]]
    swept: Callable[[AnyPanel, str], list[Swept]]
    exits: Callable[[AnyPanel], list[Exits]]
    more: Callable[[Sequence[AnyPanel]], list[TextTable]]
    how: Callable[[AnyPanel], Sequence[str]]
    warnings: Callable[[AnyPanel], list[Caveat]]
