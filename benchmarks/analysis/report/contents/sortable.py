"""Tables that a reader sorts: every cell is a text and what it is sorted by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.analysis.tables.text import MISSING


@dataclass(frozen=True)
class Cell:
    """A text, and the number that it is sorted by; None sorts it by its text."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class SortableTable:
    """A table of a report.

    Attributes:
        name: of its element.
        title: above it.
        headings: of its columns.
        rows: as many cells as headings.
        notes: how to read it.
        core: rows of ConsistentEE and its variants, by place.
    """

    name: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    core: frozenset[int] = frozenset()


def counted(number: int, word: str) -> str:
    """Count something: ``1 task``, ``2 tasks``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def without_unknown(table: SortableTable) -> SortableTable:
    """Leave out the columns of which nothing is known."""
    kept = [i for i in range(len(table.headings)) if any(row[i].text != MISSING for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, headings=[table.headings[i] for i in kept], rows=rows)


LAST = -1e9
"""What is not known comes last where the largest comes first."""


def number(value: float | None, form: str = ".2f", marks: str = "") -> Cell:
    """Return a number that may be unknown."""
    return Cell(MISSING, LAST) if value is None else Cell(f"{value:{form}}{marks}", round(value, 3))


def ratio(value: float | None) -> Cell:
    """Return full model / method."""
    return number(value, marks="x")


def with_interval(share: float, interval: tuple[float, float] | None, form: str, marks: str = "") -> Cell:
    """Return a share in percent, with its interval where there is one: ``-1.2 [-2.0, -0.4]``."""
    between = "" if interval is None else f" [{100 * interval[0]:{form}}, {100 * interval[1]:{form}}]"
    return number(100 * share, form, f"{marks}{between}")
