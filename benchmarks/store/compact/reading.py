"""Results are read from the compact form: records at once, rows when they are asked for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from benchmarks.specs.base import validation_sentence
from benchmarks.store.compact.columns import Column, columns_of, read_values
from benchmarks.store.compact.form import (
    ABOUT,
    CONTENDER,
    CONTENDERS,
    FILE,
    FOLDER,
    FORM_VERSION,
    ROWS_FILE,
    SAMPLES,
    STUDY_FILE,
    TIMINGS_FILE,
    VALIDATION_ROWS_FILE,
    TimingColumns,
)
from benchmarks.store.compact.rows import CELL, own_table
from benchmarks.store.folders import HASHES_FILE
from benchmarks.store.records import RecordT, TimingT
from benchmarks.store.sealing import file_fault
from benchmarks.store.stored_cells import CELLS_FILE, BaseStoredCell, StoredResults
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_BATCH_SIZE = "batch_size"
_CACHED_FILES = 8
_CACHED_GROUPS = 8
_SAID = 200


def kind_of_compact(root: Path) -> str:
    """Return which kind of suite filled a folder of the compact form. Raises UserError if it cannot be read."""
    return str(_about(root / CELLS_FILE)["kind"])


def failures_of_compact(root: Path) -> dict[str, str]:
    """Return the cells without a record, by their folder, and why there is none. Raises UserError."""
    return dict(_about(root / CELLS_FILE)["failures"])


def rows_of_compact(root: Path) -> set[str]:
    """Return the hashes of the rows that cells were made of, and read nothing else. Raises UserError."""
    path = root / CELLS_FILE
    _about(path)
    with _readable(path):
        return {parts["rows"] for parts in pq.read_table(path, columns=["key_parts"])["key_parts"].to_pylist()}


def read_compact(
    root: Path, record_schema: type[RecordT], timing_schema: type[TimingT]
) -> StoredResults[RecordT, TimingT]:
    """Read the records of a folder of the compact form; rows are read when they are asked for.

    Raises UserError, in one sentence, for files that are damaged, of another form, or not written together.
    """
    if fault := file_fault(root / HASHES_FILE):
        raise UserError(f"{root} cannot be read as published results: {fault}; publish the run again")
    some = [name for name in (VALIDATION_ROWS_FILE, STUDY_FILE) if (root / name).exists()]
    written = {_about(root / name)["written"] for name in (CELLS_FILE, TIMINGS_FILE, ROWS_FILE, *some)}
    if len(written) > 1:
        raise UserError(f"the files of {root} were not written together; publish the run again")
    cells = [
        BaseStoredCell(record, CompactRows(root, number, folder))
        for number, (folder, record) in enumerate(_read_cells(root / CELLS_FILE, record_schema))
    ]
    timings = _read_timings(root / TIMINGS_FILE, timing_schema)
    return StoredResults(cells, list(timings.values()), list(timings), [])


@dataclass(frozen=True)
class CompactRows:
    """The rows of a cell of the compact form.

    Attributes:
        root: the results folder.
        number: of the cell, in ``cells.parquet``.
        folder: of the cell in a run, below ``cells``.
    """

    root: Path
    number: int
    folder: str

    @property
    def place(self) -> Path:
        """The record's file, and which cell it is."""
        return self.root / CELLS_FILE / self.folder

    @property
    def file(self) -> Path:
        """All rows."""
        return self.root / ROWS_FILE

    def predictions(self) -> "pd.DataFrame":
        """Read the cell's own; those of its group stay in memory for a while."""
        found = self._own(self.file)
        if found is None:
            raise UserError(f"{self.file} has no rows of {self.folder}; publish the run again")
        return found

    def validation(self) -> "pd.DataFrame | None":
        """Read the cell's own, as its predictions."""
        path = self.root / VALIDATION_ROWS_FILE
        return self._own(path) if path.exists() else None

    def _own(self, path: Path) -> "pd.DataFrame | None":
        with _readable(path):
            about = _rows_about(path, path.stat().st_mtime_ns)
            place = about["cells"][self.number]
            if place is None:
                return None
            layout, group = place
            rows = _group(path, path.stat().st_mtime_ns, group)
            return own_table(_of_cell(rows, self.number), about["layouts"][layout]).to_pandas()

    def study(self) -> "pd.DataFrame | None":
        """Read the cell's own losses."""
        path = self.root / STUDY_FILE
        if not path.exists():
            return None
        with _readable(path):
            rows = _of_cell(_table(path), self.number)
        return rows.drop_columns([CELL]).to_pandas() if len(rows) else None


def _of_cell(rows: pa.Table, number: int) -> pa.Table:
    return rows.filter(pc.equal(rows[CELL], number))


@lru_cache(maxsize=_CACHED_FILES)
def _rows_about(path: Path, changed: int) -> dict[str, Any]:
    return _about(path)


@lru_cache(maxsize=_CACHED_GROUPS)
def _group(path: Path, changed: int, group: int) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read_row_group(group)


def _read_cells(path: Path, schema: type[RecordT]) -> list[tuple[str, RecordT]]:
    columns = columns_of(schema)
    with _readable(path):
        rows = _table(path).to_pylist()
        folders = [row.pop(FOLDER) for row in rows]
        records = [schema.model_validate(read_values(row, columns)) for row in rows]
    return list(zip(folders, records, strict=True))


def _read_timings(path: Path, schema: type[TimingT]) -> dict[str, TimingT]:
    columns = TimingColumns.of(schema)
    with _readable(path):
        table = _table(path)
        if unknown := set(table.column_names) - set(columns.flat):
            raise ValueError(f"column {min(unknown)!r} is of another version")
        return {
            rows[0][FILE]: schema.model_validate(
                {**_part(rows[0], columns.timing), CONTENDERS: _contenders(rows, columns)},
            )
            for rows in _runs_of(table.to_pylist(), FILE)
        }


def _contenders(rows: Sequence[Mapping[str, Any]], columns: TimingColumns) -> list[dict[str, Any]]:
    return [
        {
            **_part(of_one[0], columns.contender),
            SAMPLES: [_part(row, columns.samples) for row in of_one if row[_BATCH_SIZE] is not None],
        }
        for of_one in _runs_of(rows, CONTENDER)
        if of_one[0][CONTENDER] is not None
    ]


def _runs_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[Mapping[str, Any]]]:
    return [list(run) for _, run in groupby(rows, key=lambda row: row[name])]


def _part(row: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    return read_values({name: row[name] for name in columns if name in row}, columns)


def _table(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True)


def _about(path: Path) -> dict[str, Any]:
    """Return what a file says of itself. Raises UserError if it is none of ours."""
    with _readable(path):
        about = json.loads((pq.read_schema(path).metadata or {}).get(ABOUT, b"{}"))
        if about.get("form") != FORM_VERSION:
            found = f"form {about['form']}" if "form" in about else "another program's file"
            raise ValueError(f"{found}, this version reads form {FORM_VERSION}")
    return dict(about)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn all that can be wrong with a file into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; publish the run again") from error
    except ValidationError as error:
        raise UserError(f"{path} holds records of another version: {validation_sentence(error)}") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:_SAID]
        raise UserError(f"{path} cannot be read as published results: {reason}") from error
