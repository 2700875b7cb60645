"""Read a results folder. Folders of runs and published folders are read alike: they list the same files."""

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from benchmarks.store.folders import (
    CELLS_FILE,
    FAILURE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    TIMING_FILES,
    VALIDATION_FILE,
    Fault,
    parse_text,
    read_rows,
    record_files,
)
from benchmarks.store.hashes import unsealed
from benchmarks.store.records import FailureRecord, RecordT, TimingT
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredCell(Generic[RecordT]):
    """A cell of a results folder. Its rows are read when they are asked for.

    ``folder`` is the cell's in a run, below ``cells``; ``number`` the cell's in published results, and None in a run.
    """

    record: RecordT
    root: Path
    folder: str
    number: int | None = None

    @property
    def place(self) -> Path:
        """Where the cell lies: in a run its folder; in published results the file, and its folder in the run."""
        return self.root / ("cells" if self.number is None else CELLS_FILE) / self.folder

    def predictions(self) -> "pd.DataFrame":
        """Read the predictions, one line a test row.

        Columns: ``row``, ``label``, ``full_prediction`` (at the last layer), ``layer_prediction_t`` for layer t = 1,
        2, ... (not in folders written before version 0.2), and for operating point i (the order of the record)
        ``prediction_i`` and ``exit_layer_i``; for point i of the hull that is no operating point
        ``hull_exit_layer_i``, whose answer is that of this layer. Raises UserError if there are none.
        """
        found = self.rows_of(PREDICTIONS_FILE)
        if found is None:
            raise UserError(f"{self.place} has no rows; run the suite again, and publish it if it was published")
        return found

    def validation(self) -> "pd.DataFrame | None":
        """Read the answers of the validation rows: ``row``, ``label``, ``hull_prediction_i`` for point i of the hull.

        None in folders that are older than this file.
        """
        return self.rows_of(VALIDATION_FILE)

    def rows_of(self, name: str) -> "pd.DataFrame | None":
        """Read one of the cell's own files of rows; None if it has none. Raises UserError if it cannot be read."""
        table = self._table(name)
        return None if table is None else table.to_pandas(ignore_metadata=True)  # the index is the default one

    def columns(self) -> "dict[str, NDArray[Any]] | None":
        """Read :meth:`predictions` as arrays; a DataFrame takes twice as long. None if there are none."""
        table = self._table(PREDICTIONS_FILE)
        return None if table is None else {name: table[name].to_numpy() for name in table.column_names}

    def _table(self, name: str) -> "pa.Table | None":
        if self.number is not None:
            from benchmarks.store.published import read_own_rows

            return read_own_rows(self.root, self.number, name)
        path = self.place / name
        return read_rows(path) if path.exists() else None


@dataclass(frozen=True)
class StoredResults(Generic[RecordT, TimingT]):
    """All that a results folder holds, and the files that cannot be read.

    ``timing_files`` has the file of each timing in a run, below ``timings``.
    """

    cells: list[StoredCell[RecordT]]
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

    The latest timing of a group comes first: earlier ones may be of another protocol. Nothing is moved: reading results
    never changes them. Raises UserError if the folder holds no record at all or is none, and if it was published and is
    damaged.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; give a folder of results")
    published = is_published(root)
    cells: list[StoredCell[RecordT]] = []
    timings: dict[str, TimingT] = {}
    faults: list[Fault] = []
    for number, (file, text) in enumerate(_texts(root, "cells", RECORD_FILE).items()):
        record, reason = parse_text(text, record_schema)
        if record is None:
            faults.append(Fault(root / "cells" / file, "damaged", str(reason)))
        else:
            cells.append(StoredCell(record, root, Path(file).parent.as_posix(), number if published else None))
    for file, text in _texts(root, "timings", TIMING_FILES).items():
        timing, reason = parse_text(text, timing_schema)
        if timing is None:
            faults.append(Fault(root / "timings" / file, "damaged", str(reason)))
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
    """Return why cells have no record (they failed, or are not defined for the task), by their folders in a run.

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
