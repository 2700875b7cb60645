"""Read a results folder. Folders of runs and published folders are read alike: they list the same files.

A published folder has the JSON files and the rows of a run as one Parquet file each. ``cells.parquet`` and
``timings.parquet`` have a row for each JSON file of the run, in order: ``file`` and ``text``. The rows of all cells lie
one after another in ``rows.parquet`` and ``validation.parquet``, with the columns of the cells' own files and the
number of the cell, which counts the rows of ``cells.parquet`` from 0. A cell has not all of these columns: the schema
of its own file is kept in a column of ``cells.parquet``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from benchmarks.store.folders import (
    CELLS_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    TIMING_FILES,
    VALIDATION_FILE,
    Fault,
    parse_text,
    parse_texts,
    read_rows,
    record_files,
)
from benchmarks.store.generation_records import GenerationRecord
from benchmarks.store.hashes import file_fault
from benchmarks.store.records import BaseRecord, CellRecord, FailureRecord
from benchmarks.store.timings import TimingRecord
from consistentee.errors import UserError
from consistentee.versions import Kind

if TYPE_CHECKING:
    import pandas as pd

TIMINGS_FILE = "timings.parquet"
ROWS_FILES = {PREDICTIONS_FILE: "rows.parquet", VALIDATION_FILE: "validation.parquet"}
"""File of a cell -> published file of the rows of all cells."""
CELL_COLUMN = "cell"
_SHOWN = 200

_SCHEMAS: dict[Kind, type[BaseRecord]] = {"classification": CellRecord, "generation": GenerationRecord}


@dataclass(frozen=True)
class StoredCell:
    """A cell of a results folder. Its rows are read when they are asked for.

    ``folder`` is the cell's in a run, below ``cells``; ``number`` the cell's in published results, and None in a run.
    """

    record: BaseRecord
    root: Path
    folder: str
    number: int | None = None

    @property
    def place(self) -> Path:
        """Where the cell lies: in a run its folder; in published results the file, and its folder in the run."""
        return self.root / ("cells" if self.number is None else CELLS_FILE) / self.folder

    def predictions(self) -> "pd.DataFrame":
        """Read the predictions, one line a test row.

        Columns: ``row``, ``label``, ``layer_prediction_t`` for layer t, and the layer that answers: ``exit_layer_i`` at
        operating point i (the order of the record), ``hull_exit_layer_i`` at point i of the hull that is none. Raises
        UserError if there are none.
        """
        table = self.table(PREDICTIONS_FILE)
        if table is None:
            raise UserError(f"{self.place} has no rows; run the suite again, and publish it if it was published")
        return table.to_pandas(ignore_metadata=True)

    def validation(self) -> "pd.DataFrame | None":
        """Read ``row``, ``label`` and ``hull_prediction_i`` for point i of the hull; None in older folders."""
        table = self.table(VALIDATION_FILE)
        return None if table is None else table.to_pandas(ignore_metadata=True)

    def table(self, name: str, *, own_types: bool = True) -> pa.Table | None:
        """Read one of the cell's own files of rows; None if it has none. Raises UserError if it cannot be read.

        Without ``own_types`` published numbers keep the type that all cells share, which spares a copy.
        """
        if self.number is not None:
            return _published_rows(self.root, self.number, name, own_types=own_types)
        path = self.place / name
        return read_rows(path).replace_schema_metadata(None) if path.exists() else None


@dataclass(frozen=True)
class StoredResults:
    """All that a results folder holds, and the files that cannot be read.

    ``timings`` are by their file in a run, below ``timings``. The latest of a group comes first: earlier ones may be of
    another protocol.
    """

    kind: Kind
    cells: list[StoredCell]
    timings: dict[str, TimingRecord]
    faults: list[Fault]


class _AnyRecord(BaseModel):
    kind: Kind = "classification"  # its records are older than the other kind, and do not name theirs


def is_published(root: Path) -> bool:
    """Check whether a results folder was written by publishing, and not by a run."""
    return (root / CELLS_FILE).exists()


def kind_of_results(root: Path) -> Kind | None:
    """Return the kind of a folder's first record that is whole; None if none is. Raises UserError, see open_results."""
    found = (parse_text(text, _AnyRecord)[0] for text in _texts(root, "cells", RECORD_FILE).values())
    return next((record.kind for record in found if record), None)


def open_results(root: Path) -> StoredResults:
    """Read the records of a results folder; rows are read when they are asked for. Nothing is moved or changed.

    Raises UserError if the folder holds no record at all or is none, and if it was published and is damaged.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; give a folder of results")
    kind, published = kind_of_results(root) or "classification", is_published(root)
    records, faults = parse_texts(_texts(root, "cells", RECORD_FILE), _SCHEMAS[kind])
    timings, more_faults = parse_texts(_texts(root, "timings", TIMING_FILES), TimingRecord)
    faults += more_faults
    if published and faults:
        raise UserError(f"{root / CELLS_FILE} holds records of another version: {faults[0].reason}")
    if not records and not faults:
        inside = [str(place) for place in sorted(root.glob("*")) if is_published(place) or (place / "cells").is_dir()]
        hint = f"these do: {', '.join(inside)}" if inside else f"`consistentee run SUITE --out {root}` makes some"
        raise UserError(f"{root} holds no results; {hint}")
    cells = [
        StoredCell(record, root, path.parent.relative_to(root / "cells").as_posix(), number if published else None)
        for number, (path, record) in enumerate(records.items())
    ]
    files = sorted(timings, key=lambda path: timings[path].finished_at, reverse=True)
    files.sort(key=lambda path: path.parent)
    by_file = {path.relative_to(root / "timings").as_posix(): timings[path] for path in files}
    return StoredResults(kind, cells, by_file, faults)


def failed_cells(root: Path) -> dict[str, FailureRecord]:
    """Read why cells have no record, by their folders in a run. Raises UserError, see :func:`open_results`."""
    done = {path.parent for path in _texts(root, "cells", RECORD_FILE)}
    notes, _ = parse_texts(_texts(root, "cells", FAILURE_FILE), FailureRecord)
    places = {path.parent: note for path, note in notes.items() if path.parent not in done}
    return {place.relative_to(root / "cells").as_posix(): note for place, note in places.items()}


def _texts(root: Path, below: str, pattern: str) -> dict[Path, str]:
    """Read the texts of the JSON files of cells or timings whose name fits, by their paths in a run."""
    if is_published(root):
        texts = _published_texts(root / f"{below}.parquet")
        return {root / below / file: text for file, text in texts.items() if fnmatch(Path(file).name, pattern)}
    return {path: path.read_text("utf-8", errors="replace") for path in record_files(root / below, pattern)}


def _published_texts(path: Path) -> dict[str, str]:
    with _readable(path):
        if fault := file_fault(path.with_name(HASHES_FILE)):
            raise ValueError(fault)
        table = _table(path)
        return dict(zip(table["file"].to_pylist(), table["text"].to_pylist(), strict=True))


def _published_rows(root: Path, number: int, name: str, *, own_types: bool) -> pa.Table | None:
    path = root / ROWS_FILES[name]
    with _readable(path):
        cells = _table(root / CELLS_FILE)
        written = cells[name][number].as_py() if name in cells.column_names else None
        if written is None:
            return None
        schema, first = pa.ipc.read_schema(pa.py_buffer(written)), _first_rows(path, path.stat().st_mtime_ns)
        own = _table(path).select(schema.names).slice(first[number], first[number + 1] - first[number])
        return pa.table(list(map(_cast, own, schema.types)), schema=schema) if own_types else own


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    # Arrow does not cast to types that hold nothing but None and empty lists.
    return pa.array(column.to_pylist(), kind) if "null" in str(kind) else column.cast(kind)


def _table(path: Path) -> pa.Table:
    return _table_as_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _table_as_of(path: Path, changed: int) -> pa.Table:
    """Keep a table until its file has ``changed``: a folder may be published again while it is open."""
    return pq.read_table(path, page_checksum_verification=True)


@lru_cache(maxsize=4)
def _first_rows(path: Path, changed: int) -> list[int]:
    """Return where the rows of cells 0, 1, ... begin, and the number of all rows."""
    numbers = _table_as_of(path, changed)[CELL_COLUMN].to_numpy()  # they rise
    return np.searchsorted(numbers, np.arange(numbers.max(initial=-1) + 2)).tolist()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn everything that can be wrong with a published file into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; publish the run again") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:_SHOWN]
        raise UserError(f"{path} cannot be read as published results: {reason}") from error
