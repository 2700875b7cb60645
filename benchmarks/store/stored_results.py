"""Read a results folder. Folders of runs and published folders are read alike: they list the same files."""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol

from benchmarks.store.folders import (
    CALIBRATION_FILE,
    CELLS_FILE,
    FAILURE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    TIMING_FILES,
    VALIDATION_FILE,
    Fault,
    parse_text,
    read_predictions,
    read_rows,
    read_validation,
    record_files,
)
from benchmarks.store.records import FailureRecord, RecordT, TimingT
from benchmarks.store.sealing import unsealed
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class RowSource(Hashable, Protocol):
    """The rows of a cell. Nothing is read before it is asked for, and what cannot be read raises UserError."""

    @property
    def folder(self) -> str:
        """The cell's folder in a run, below ``cells``."""

    @property
    def place(self) -> Path:
        """Where the cell lies, for messages."""

    def predictions(self) -> "pd.DataFrame":
        """Read the table of :func:`benchmarks.store.folders.read_predictions`."""

    def validation(self) -> "pd.DataFrame | None":
        """Read the table of :func:`benchmarks.store.folders.read_validation`."""

    def study(self) -> "pd.DataFrame | None":
        """Read the losses of a study of calibration, one line a prompt and threshold; None where there was none."""


@dataclass(frozen=True)
class CellFolder:
    """The rows in the folder that a run gave to a cell.

    Attributes:
        place: where it lies.
        folder: the same, below the run's ``cells``.
    """

    place: Path
    folder: str = ""

    def predictions(self) -> "pd.DataFrame":
        """Read the answers of the test rows."""
        return read_predictions(self.place)

    def validation(self) -> "pd.DataFrame | None":
        """Read the answers of the validation rows."""
        return read_validation(self.place)

    def study(self) -> "pd.DataFrame | None":
        """Read the losses of its study."""
        path = self.place / CALIBRATION_FILE
        return read_rows(path) if path.exists() else None


@dataclass(frozen=True)
class PublishedCell:
    """The rows of a cell in published results.

    Attributes:
        root: the results folder.
        number: of the cell in ``cells.parquet``.
        folder: of the cell in its run, below ``cells``.
    """

    root: Path
    number: int
    folder: str

    @property
    def place(self) -> Path:
        """The file of the record, and the cell in it."""
        return self.root / CELLS_FILE / self.folder

    def predictions(self) -> "pd.DataFrame":
        """Read the answers of the test rows."""
        found = self._read(PREDICTIONS_FILE)
        if found is None:
            raise UserError(f"{self.place} has no rows; publish the run again")
        return found

    def validation(self) -> "pd.DataFrame | None":
        """Read the answers of the validation rows."""
        return self._read(VALIDATION_FILE)

    def study(self) -> "pd.DataFrame | None":
        """Read the losses of its study."""
        return self._read(CALIBRATION_FILE)

    def _read(self, name: str) -> "pd.DataFrame | None":
        from benchmarks.store.published import read_own_rows

        return read_own_rows(self.root, self.number, name)


@dataclass(frozen=True)
class BaseStoredCell(Generic[RecordT]):
    """A cell's record, and where its rows are."""

    record: RecordT
    rows: RowSource


@dataclass(frozen=True)
class StoredResults(Generic[RecordT, TimingT]):
    """All that a results folder holds.

    Attributes:
        cells: of every cell its record, and where its rows are.
        timings: of every group that was timed.
        timing_files: of each timing, its file in a run, below ``timings``.
        faults: the files that cannot be read.
    """

    cells: list[BaseStoredCell[RecordT]]
    timings: list[TimingT]
    timing_files: list[str]
    faults: list[Fault]


def is_published(root: Path) -> bool:
    """Check whether a results folder was written by publishing, and not by a run."""
    return (root / CELLS_FILE).exists()


def open_results(
    root: Path, record_schema: type[RecordT], timing_schema: type[TimingT]
) -> StoredResults[RecordT, TimingT]:
    """Read the records of a results folder; rows are read when they are asked for.

    Of a group, the timing that was taken last comes first: earlier ones may be of another protocol. Nothing is moved:
    reading results never changes them. Raises UserError if the folder holds no record at all or is none, and if it was
    published and is damaged.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; give a folder of results")
    published = is_published(root)
    cells: list[BaseStoredCell[RecordT]] = []
    timings: dict[str, TimingT] = {}
    faults: list[Fault] = []
    for number, (file, text) in enumerate(_texts(root, "cells", RECORD_FILE).items()):
        record, reason = parse_text(text, record_schema)
        folder, path = Path(file).parent.as_posix(), root / "cells" / file
        if record is None:
            faults.append(Fault(path, "damaged", str(reason), whole=path))
        else:
            rows = PublishedCell(root, number, folder) if published else CellFolder(path.parent, folder)
            cells.append(BaseStoredCell(record, rows))
    for file, text in _texts(root, "timings", TIMING_FILES).items():
        timing, reason = parse_text(text, timing_schema)
        if timing is None:
            faults.append(Fault(root / "timings" / file, "damaged", str(reason), whole=root / "timings" / file))
        else:
            timings[file] = timing
    if published and faults:
        raise UserError(f"{root / CELLS_FILE} holds records of another version: {faults[0].reason}")
    if not cells and not faults:
        inside = [str(place) for place in sorted(root.glob("*")) if is_published(place) or (place / "cells").is_dir()]
        hint = f"these do: {', '.join(inside)}" if inside else f"`consistentee run SUITE --out {root}` makes some"
        raise UserError(f"{root} holds no results; {hint}")
    files = sorted(timings, key=lambda file: timings[file].finished_at, reverse=True)
    files.sort(key=lambda file: Path(file).parent)
    return StoredResults(cells, [timings[file] for file in files], files, faults)


def _texts(root: Path, below: str, pattern: str) -> dict[str, str]:
    """Return the texts of the JSON files of cells or timings whose name fits, by their place below that folder."""
    if is_published(root):
        from benchmarks.store.published import read_texts

        texts = read_texts(root, f"{below}.parquet")
        return {file: text for file, text in texts.items() if fnmatch(Path(file).name, pattern)}
    files = record_files(root / below, pattern)
    return {file.relative_to(root / below).as_posix(): file.read_text("utf-8", errors="replace") for file in files}


def failed_cells(root: Path) -> dict[str, str]:
    """Return the cells that failed, or are not defined for their task, and why, by their folders below ``cells``.

    Raises UserError if the folder was published and cannot be read.
    """
    return {
        folder: failure.error if (failure := parse_text(text, FailureRecord)[0]) else "unreadable note"
        for folder, text in failure_texts(root).items()
    }


def failure_texts(root: Path) -> dict[str, str]:
    """Return the texts of the notes of failures where there is no record, by the cells' folders."""
    done = {Path(file).parent for file in _texts(root, "cells", RECORD_FILE)}
    notes = {Path(file).parent: text for file, text in _texts(root, "cells", FAILURE_FILE).items()}
    return {place.as_posix(): text for place, text in notes.items() if place not in done}


def kind_of_results(root: Path) -> str | None:
    """Return which kind of suite filled a results folder, from its first record that is whole; None if none is.

    Records of classification do not name their kind: they are older than the other kinds. Raises UserError if the
    folder was published and cannot be read.
    """
    for text in _texts(root, "cells", RECORD_FILE).values():
        content, fault = unsealed(text)
        try:
            values = None if fault else json.loads(content)
        except ValueError:  # a damaged record is named when it is read
            continue
        if isinstance(values, dict):
            return str(values.get("kind", "classification"))
    return None
