"""What a results folder holds: the one way by which results are read, whatever form they have."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.store.folders import (
    CALIBRATION_FILE,
    FAILURE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    TIMING_FILES,
    Fault,
    parse_record,
    read_predictions,
    read_rows,
    read_validation,
    record_files,
)
from benchmarks.store.records import FailureRecord, RecordT, TimingT
from benchmarks.store.sealing import unsealed
from benchmarks.store.stored_cells import CELLS_FILE, BaseStoredCell, RowSource, StoredResults
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BaseStoredCell",
    "CellFolder",
    "RowSource",
    "StoredResults",
    "failed_cells",
    "is_compact",
    "kind_of_results",
    "open_results",
]


@dataclass(frozen=True)
class CellFolder:
    """The folder that a run gave to a cell.

    Attributes:
        place: where it lies.
        folder: the same, below the run's ``cells``.
    """

    place: Path
    folder: str = ""

    @property
    def file(self) -> Path:
        """Its predictions."""
        return self.place / PREDICTIONS_FILE

    def predictions(self) -> "pd.DataFrame":
        """Read them."""
        return read_predictions(self.place)

    def validation(self) -> "pd.DataFrame | None":
        """Read the answers of its validation rows."""
        return read_validation(self.place)

    def study(self) -> "pd.DataFrame | None":
        """Read the losses of its study."""
        path = self.place / CALIBRATION_FILE
        return read_rows(path) if path.exists() else None


def open_results(
    root: Path, record_schema: type[RecordT], timing_schema: type[TimingT]
) -> StoredResults[RecordT, TimingT]:
    """Read the records of a results folder; rows are read when they are asked for.

    Of a group, the timing that was taken last comes first: earlier ones may be of another protocol. Published ones have
    the order in which they were written. Nothing is moved: reading results never changes them. Raises UserError if the
    folder holds no record at all or is none, and if it has the compact form and cannot be read.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; give a folder of results")
    if is_compact(root):
        from benchmarks.store.compact.reading import read_compact

        return read_compact(root, record_schema, timing_schema)
    cells: list[BaseStoredCell[RecordT]] = []
    timings: dict[str, TimingT] = {}
    faults: list[Fault] = []
    for path in record_files(root / "cells", RECORD_FILE):
        record, reason = parse_record(path, record_schema)
        if record is None:
            faults.append(Fault(path, "damaged", reason or "vanished", whole=path))
        else:
            cells.append(
                BaseStoredCell(record, CellFolder(path.parent, path.parent.relative_to(root / "cells").as_posix()))
            )
    for path in record_files(root / "timings", TIMING_FILES):
        timing, reason = parse_record(path, timing_schema)
        if timing is None:
            faults.append(Fault(path, "damaged", reason or "vanished", whole=path))
        else:
            timings[path.relative_to(root / "timings").as_posix()] = timing
    if not cells and not faults:
        inside = [str(place) for place in sorted(root.glob("*")) if is_compact(place) or (place / "cells").is_dir()]
        hint = f"these do: {', '.join(inside)}" if inside else f"`consistentee run SUITE --out {root}` makes some"
        raise UserError(f"{root} holds no results; {hint}")
    files = sorted(timings, key=lambda file: timings[file].finished_at, reverse=True)
    files.sort(key=lambda file: Path(file).parent)
    return StoredResults(cells, [timings[file] for file in files], files, faults)


def is_compact(root: Path) -> bool:
    """Say whether a results folder has the compact form, see :mod:`benchmarks.store.compact`."""
    return (root / CELLS_FILE).exists()


def failed_cells(root: Path) -> dict[str, str]:
    """Return the cells that failed, or are not defined for their task, and why, by their folders below ``cells``.

    Raises UserError if the folder has the compact form and cannot be read.
    """
    if is_compact(root):
        from benchmarks.store.compact.reading import failures_of_compact

        return failures_of_compact(root)
    notes = [path for path in sorted((root / "cells").rglob(FAILURE_FILE)) if not (path.parent / RECORD_FILE).exists()]
    failures = {}
    for path in notes:
        failure, _ = parse_record(path, FailureRecord)
        failures[path.parent.relative_to(root / "cells").as_posix()] = failure.error if failure else "unreadable note"
    return failures


def kind_of_results(root: Path) -> str | None:
    """Return which kind of suite filled a results folder, from its first record that says so; None if none does.

    Records of classification say nothing: they are older than the other kinds. Raises UserError if the folder has the
    compact form and cannot be read.
    """
    if is_compact(root):
        from benchmarks.store.compact.reading import kind_of_compact

        return kind_of_compact(root)
    for path in record_files(root / "cells", RECORD_FILE):
        try:
            text, fault = unsealed(path.read_text(encoding="utf-8"))
            values = None if fault else json.loads(text)
        except (OSError, ValueError):  # a damaged record is named when it is read
            continue
        if isinstance(values, dict):
            return str(values.get("kind", "classification"))
    return None
