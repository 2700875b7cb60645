"""What a results folder holds: the one way by which results are read, whatever form they have."""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from benchmarks.store.folders import (
    FAILURE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    TIMING_FILE,
    Fault,
    parse_record,
    read_predictions,
    record_files,
)
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_RecordT = TypeVar("_RecordT", bound=BaseRecord)
_TimingT = TypeVar("_TimingT", bound=BaseTimingRecord)


class RowSource(Hashable, Protocol):
    """Where the rows of a cell lie. Nothing is read before it is asked for."""

    @property
    def place(self) -> Path:
        """What people are told of where the cell lies."""

    @property
    def file(self) -> Path:
        """The file that holds the rows."""

    def predictions(self) -> "pd.DataFrame":
        """Read the table of :func:`benchmarks.store.folders.read_predictions`. Raises UserError if it cannot be."""


@dataclass(frozen=True)
class CellFolder:
    """The folder that a run gave to a cell."""

    place: Path

    @property
    def file(self) -> Path:
        """Its predictions."""
        return self.place / PREDICTIONS_FILE

    def predictions(self) -> "pd.DataFrame":
        """Read them."""
        return read_predictions(self.place)


@dataclass(frozen=True)
class BaseStoredCell(Generic[_RecordT]):
    """A cell's record, and where its rows are."""

    record: _RecordT
    rows: RowSource


@dataclass(frozen=True)
class StoredResults(Generic[_RecordT, _TimingT]):
    """All that a results folder holds.

    Attributes:
        cells: of every cell its record, and where its rows are.
        timings: of every group that was timed.
        faults: the files that cannot be read.
    """

    cells: list[BaseStoredCell[_RecordT]]
    timings: list[_TimingT]
    faults: list[Fault]


def open_results(
    root: Path, record_schema: type[_RecordT], timing_schema: type[_TimingT]
) -> StoredResults[_RecordT, _TimingT]:
    """Read the records of a results folder; rows are read when they are asked for.

    Nothing is moved: reading results never changes them. Raises UserError if the folder holds no record at all.
    """
    cells: list[BaseStoredCell[_RecordT]] = []
    timings: list[_TimingT] = []
    faults: list[Fault] = []
    for path in record_files(root / "cells", RECORD_FILE):
        record, reason = parse_record(path, record_schema)
        if record is None:
            faults.append(Fault(path, "damaged", reason or "vanished", whole=path))
        else:
            cells.append(BaseStoredCell(record, CellFolder(path.parent)))
    for path in record_files(root / "timings", TIMING_FILE):
        timing, reason = parse_record(path, timing_schema)
        if timing is None:
            faults.append(Fault(path, "damaged", reason or "vanished", whole=path))
        else:
            timings.append(timing)
    if not cells and not faults:
        raise UserError(f"{root} holds no results; `consistentee run SUITE --out {root}` makes some")
    return StoredResults(cells, timings, faults)


def failed_cells(root: Path) -> list[Path]:
    """Return the cells that failed, or are not defined for their task: their folders below ``cells``."""
    notes = sorted((root / "cells").rglob(FAILURE_FILE))
    return [path.parent.relative_to(root / "cells") for path in notes if not (path.parent / RECORD_FILE).exists()]


def kind_of_results(root: Path) -> str | None:
    """Return which kind of suite filled a results folder, from its first record that says so; None if none does.

    Records of classification say nothing: they are older than the other kinds.
    """
    for path in record_files(root / "cells", RECORD_FILE):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a damaged record is told of when it is read
            continue
        if isinstance(values, dict):
            return str(values.get("kind", "classification"))
    return None
