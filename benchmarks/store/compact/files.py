"""The compact form of results, which is published: all cells, timings and rows of a suite in three Parquet files.

``cells.parquet`` has one row a cell, ``timings.parquet`` one a contender and batch size, ``rows.parquet`` one a cell
and test row (its column ``cell`` counts the rows of ``cells.parquet``, from 0), ``validation.parquet`` one a cell and
validation row, where answers of those were kept, and ``study.parquet``, where there is a study of calibration, one a
cell, prompt and threshold. Reading gives back what was written, to the last bit.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from benchmarks.specs.base import validation_sentence
from benchmarks.store.compact.columns import Column, column_of, columns_of, read_values, table_of, written_values
from benchmarks.store.compact.rows import CELL, Layout, alike, joined, layout_of, own_table
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from benchmarks.store.stored_cells import CELLS_FILE, BaseStoredCell, StoredResults
from consistentee.errors import UserError
from consistentee.files import replacing

if TYPE_CHECKING:
    import pandas as pd

FORM_VERSION = 1
"""Of the layout of the files; records have schema versions of their own."""

TIMINGS_FILE = "timings.parquet"
ROWS_FILE = "rows.parquet"
VALIDATION_ROWS_FILE = "validation.parquet"
STUDY_FILE = "study.parquet"

_ABOUT = b"consistentee"
_FOLDER = "folder"
_FILE = "file"
_CONTENDER = "contender"
_CONTENDERS = "contenders"
_SAMPLES = "samples"
_BATCH_SIZE = "batch_size"
_COMPRESSION_LEVEL = 19
_CACHED_FILES = 8
_CACHED_GROUPS = 8
_SAID = 200

_RecordT = TypeVar("_RecordT", bound=BaseRecord)
_TimingT = TypeVar("_TimingT", bound=BaseTimingRecord)


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


# ---------------------------------------------------------------------------------------------- writing


def write_compact(
    root: Path,
    results: StoredResults[_RecordT, _TimingT],
    timing_schema: type[_TimingT],
    *,
    kind: str,
    failures: Mapping[str, str],
) -> list[Path]:
    """Write results in the compact form, each file atomically, and return the files.

    Args:
        root: the folder.
        results: what is written, rows included; at least one cell.
        timing_schema: of the timings.
        kind: of the suite.
        failures: of every cell without a record, by its folder: why there is none.

    Raises:
        UserError: the rows of a cell cannot be read.
    """
    about = {"form": FORM_VERSION, "kind": kind, "written": _fingerprint(results)}
    cells = results.cells
    rows = _rows(cells, [cell.rows.predictions() for cell in cells])
    validation = _rows(cells, [cell.rows.validation() for cell in cells])
    study, timings = _study(cells), _timings(results, timing_schema)
    for name in (VALIDATION_ROWS_FILE, STUDY_FILE):
        (root / name).unlink(missing_ok=True)
    return [
        _write_rows(root / ROWS_FILE, rows, about),
        *([_write_rows(root / VALIDATION_ROWS_FILE, validation, about)] if validation.groups else []),
        _write(root / TIMINGS_FILE, [timings], about, **_for_times(timings)),
        *([] if study is None else [_write(root / STUDY_FILE, [study], about)]),
        _write(root / CELLS_FILE, [_cells(cells)], {**about, "failures": dict(failures)}),
    ]


def _fingerprint(results: StoredResults[_RecordT, _TimingT]) -> str:
    """Return what says that files were written together."""
    digest = hashlib.sha256()
    for record in (*(cell.record for cell in results.cells), *results.timings):
        digest.update(record.model_dump_json().encode())
    return digest.hexdigest()


def _write(path: Path, groups: Sequence[pa.Table], about: Mapping[str, Any], **encodings: Any) -> Path:
    """Write tables of one schema, each as a row group."""
    schema = groups[0].schema.with_metadata({_ABOUT: json.dumps(about)})
    options = {"compression": "zstd", "compression_level": _COMPRESSION_LEVEL, "write_page_checksum": True}
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **options, **encodings) as writer:
        for table in groups:
            writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))
    return path


def _write_rows(path: Path, rows: "_Rows", about: Mapping[str, Any]) -> Path:
    """Write rows without dictionaries, whose codes are bits: equal rows are equal bytes, which compress better."""
    return _write(path, rows.groups, {**about, "layouts": rows.layouts, "cells": rows.cells}, use_dictionary=False)


def _for_times(table: pa.Table) -> dict[str, Any]:
    """Return how lists of measured times are encoded: they hardly repeat, but their first bytes do."""
    split = {path: "BYTE_STREAM_SPLIT" for field in table.schema if (path := _path_of_floats(field.name, field.type))}
    names = [name for name in table.column_names if not any(path.startswith(f"{name}.") for path in split)]
    return {"use_dictionary": names, "column_encoding": split}


def _path_of_floats(name: str, kind: pa.DataType) -> str | None:
    """Return the path in the file of what lists of floats hold; None for any other type."""
    path = name
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path if path != name and pa.types.is_float64(kind) else None


def _cells(cells: Sequence[BaseStoredCell[_RecordT]]) -> pa.Table:
    columns = columns_of(type(cells[0].record))
    rows = [{_FOLDER: cell.rows.folder, **written_values(cell.record, columns)} for cell in cells]
    return table_of(rows, {_FOLDER: column_of(str), **columns})


@dataclass(frozen=True)
class _TimingColumns:
    """The columns of timings, on three levels that share each row: the timing, a contender of it, a batch size."""

    timing: dict[str, Column]
    contender: dict[str, Column]
    samples: dict[str, Column]

    @classmethod
    def of(cls, schema: type[BaseTimingRecord]) -> "_TimingColumns":
        """Return the columns of a schema of timings."""
        (contender,) = get_args(schema.model_fields[_CONTENDERS].annotation)
        (samples,) = get_args(contender.model_fields[_SAMPLES].annotation)
        return cls(columns_of(schema, [_CONTENDERS]), columns_of(contender, [_SAMPLES]), columns_of(samples))

    @property
    def flat(self) -> dict[str, Column]:
        """All columns, and the two that say which timing it is, and which contender of it."""
        return {_FILE: column_of(str), _CONTENDER: column_of(int), **self.timing, **self.contender, **self.samples}


def _timings(results: StoredResults[_RecordT, _TimingT], schema: type[_TimingT]) -> pa.Table:
    columns = _TimingColumns.of(schema)
    rows = []
    for file, timing in zip(results.timing_files, results.timings, strict=True):
        whole = {_FILE: file, **written_values(timing, columns.timing)}
        for place, contender in enumerate(timing.contenders):
            part = {**whole, _CONTENDER: place, **written_values(contender, columns.contender)}
            rows += [{**part, **written_values(samples, columns.samples)} for samples in contender.samples]
            rows += [] if contender.samples else [part]
        rows += [] if timing.contenders else [whole]
    return table_of(rows, columns.flat)


@dataclass(frozen=True)
class _Rows:
    """The rows of all cells: a group for each (task, backbone); of each cell, the numbers of its layout and group.

    None of a cell without such rows.
    """

    groups: list[pa.Table]
    layouts: list[Layout]
    cells: list[tuple[int, int] | None]


def _rows(cells: Sequence[BaseStoredCell[_RecordT]], frames: "Sequence[pd.DataFrame | None]") -> _Rows:
    groups: dict[tuple[str, str], list[tuple[int, pa.Table]]] = {}
    layouts: dict[Layout, int] = {}
    places: list[tuple[int, int] | None] = []
    for number, (cell, frame) in enumerate(zip(cells, frames, strict=True)):
        if frame is None:
            places.append(None)
            continue
        table = _plain(frame)
        group = (cell.record.task, cell.record.backbone)
        groups.setdefault(group, []).append((number, table))
        places.append((layouts.setdefault(layout_of(table), len(layouts)), list(groups).index(group)))
    tables = [joined(members) for members in groups.values()]
    return _Rows(alike(tables) if tables else [], list(layouts), places)


def _study(cells: Sequence[BaseStoredCell[_RecordT]]) -> pa.Table | None:
    frames = [(number, cell.rows.study()) for number, cell in enumerate(cells)]
    tables = [
        _plain(frame).add_column(0, CELL, pa.array([number] * len(frame), pa.int32()))
        for number, frame in frames
        if frame is not None
    ]
    return pa.concat_tables(tables) if tables else None


def _plain(frame: "pd.DataFrame") -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


# ---------------------------------------------------------------------------------------------- reading


def read_compact(
    root: Path, record_schema: type[_RecordT], timing_schema: type[_TimingT]
) -> StoredResults[_RecordT, _TimingT]:
    """Read the records of a folder of the compact form; rows are read when they are asked for.

    Raises UserError, in one sentence, for files that are damaged, of another form, or not written together.
    """
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


def _read_cells(path: Path, schema: type[_RecordT]) -> list[tuple[str, _RecordT]]:
    columns = columns_of(schema)
    with _readable(path):
        rows = _table(path).to_pylist()
        folders = [row.pop(_FOLDER) for row in rows]
        records = [schema.model_validate(read_values(row, columns)) for row in rows]
    return list(zip(folders, records, strict=True))


def _read_timings(path: Path, schema: type[_TimingT]) -> dict[str, _TimingT]:
    columns = _TimingColumns.of(schema)
    with _readable(path):
        table = _table(path)
        if unknown := set(table.column_names) - set(columns.flat):
            raise ValueError(f"column {min(unknown)!r} is of another version")
        return {
            rows[0][_FILE]: schema.model_validate(
                {**_part(rows[0], columns.timing), _CONTENDERS: _contenders(rows, columns)},
            )
            for rows in _runs_of(table.to_pylist(), _FILE)
        }


def _contenders(rows: Sequence[Mapping[str, Any]], columns: _TimingColumns) -> list[dict[str, Any]]:
    return [
        {
            **_part(of_one[0], columns.contender),
            _SAMPLES: [_part(row, columns.samples) for row in of_one if row[_BATCH_SIZE] is not None],
        }
        for of_one in _runs_of(rows, _CONTENDER)
        if of_one[0][_CONTENDER] is not None
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
        about = json.loads((pq.read_schema(path).metadata or {}).get(_ABOUT, b"{}"))
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
