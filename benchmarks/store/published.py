"""The files of published results: the JSON files and the rows of a run, each as one Parquet file.

``cells.parquet`` and ``timings.parquet`` have a row for each JSON file of the run, in order: ``file`` and ``text``. The
rows of all cells lie one after another in ``rows.parquet``, ``validation.parquet`` and ``study.parquet``, with the
columns of the cells' own files and the number of the cell, which counts the rows of ``cells.parquet`` from 0. A cell
has not all of these columns: the schema of its own file is kept in a column of ``cells.parquet``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.store.folders import (
    CALIBRATION_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    VALIDATION_FILE,
)
from benchmarks.store.hashes import file_fault, write_json
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from benchmarks.store.stored_results import CELLS_FILE, StoredResults
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_TIMINGS_FILE = "timings.parquet"
_FILES = {PREDICTIONS_FILE: "rows.parquet", VALIDATION_FILE: "validation.parquet", CALIBRATION_FILE: "study.parquet"}
"""File of a cell -> file of the rows of all cells."""
_CELL_COLUMN = "cell"
_SHOWN = 200
_OPTIONS = {"compression": "zstd", "compression_level": 19, "write_page_checksum": True}
_ONE_PAGE = 1 << 28  # bytes: texts are alike, and pages are compressed one by one


# ---------------------------------------------------------------------------------------------- reading


def read_texts(root: Path, file: str) -> dict[str, str]:
    """Return the texts of ``cells.parquet`` or ``timings.parquet``, by file. Raises UserError if they are damaged."""
    with _readable(root / file):
        if fault := file_fault(root / HASHES_FILE):
            raise ValueError(fault)
        table = pq.read_table(root / file, columns=["file", "text"], page_checksum_verification=True)
        return dict(zip(table["file"].to_pylist(), table["text"].to_pylist(), strict=True))


def read_own_rows(root: Path, number: int, name: str) -> "pd.DataFrame | None":
    """Return the table of a cell, by the name of its own file; None if it has none. Raises UserError."""
    path = root / _FILES[name]
    with _readable(path):
        cells = root / CELLS_FILE
        schema = _schemas(cells, cells.stat().st_mtime_ns, name)[number]
        if schema is None:
            return None
        schema = pa.ipc.read_schema(pa.py_buffer(schema))
        changed = path.stat().st_mtime_ns
        rows = _group(path, changed, _group_of(path, changed, number))
        own = rows.filter(pc.equal(rows[_CELL_COLUMN], number))
        return pa.table([_cast(own[field.name], field.type) for field in schema], schema=schema).to_pandas()


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if "null" in str(kind):  # nothing but None and empty lists, which Arrow does not cast
        return pa.array(column.to_pylist(), kind)
    return column.cast(kind)


# Caches are by the time at which a file changed: a folder may be published again while it is open.


@lru_cache(maxsize=8)
def _schemas(path: Path, changed: int, name: str) -> list[bytes | None]:
    table = pq.read_table(path, page_checksum_verification=True)
    return list(table[name].to_pylist()) if name in table.column_names else [None] * len(table)


@lru_cache(maxsize=1024)
def _group_of(path: Path, changed: int, number: int) -> int:
    """Return the row group that holds the rows of a cell: the first whose last cell is not before it."""
    metadata = pq.read_metadata(path)
    cells = [metadata.row_group(group).column(0).statistics for group in range(metadata.num_row_groups)]
    return next((group for group, cell in enumerate(cells) if cell and number <= cell.max), 0)


@lru_cache(maxsize=8)
def _group(path: Path, changed: int, group: int) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read_row_group(group)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn everything that can be wrong with a file into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; publish the run again") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:_SHOWN]
        raise UserError(f"{path} cannot be read as published results: {reason}") from error


# ---------------------------------------------------------------------------------------------- writing


def write_published(
    root: Path, results: StoredResults[BaseRecord, BaseTimingRecord], failures: Mapping[str, str]
) -> list[Path]:
    """Write the results of a run, rows included, into a folder that holds none; return the files.

    Args:
        root: the folder.
        results: the results.
        failures: by the folders of cells without a record, the texts of the notes.

    Raises:
        UserError: the rows of a cell cannot be read.
    """
    texts = {f"{cell.folder}/{RECORD_FILE}": cell.record.model_dump_json() for cell in results.cells}
    texts |= {f"{folder}/{FAILURE_FILE}": text for folder, text in failures.items()}
    schemas: dict[str, list[bytes | None]] = {}
    written = []
    for name, file in _FILES.items():
        tables = [_table_of(cell.rows_of(name)) for cell in results.cells]
        found = [None if table is None else table.schema.serialize().to_pybytes() for table in tables]
        schemas[name] = [*found, *[None] * len(failures)]
        if any(found):
            written.append(_write_rows(root / file, list(texts), tables))
    times = {file: timing.model_dump_json() for file, timing in zip(results.timing_files, results.timings, strict=True)}
    return [*written, _write_texts(root / CELLS_FILE, texts, schemas), _write_texts(root / _TIMINGS_FILE, times, {})]


def seal_published(root: Path, files: Sequence[Path]) -> Path:
    """Write the hashes of the files of published results, and return the file that has them."""
    write_json(root / HASHES_FILE, '{"form": 2}', files)
    return root / HASHES_FILE


def _write_texts(path: Path, texts: Mapping[str, str], schemas: Mapping[str, list[bytes | None]]) -> Path:
    columns: dict[str, pa.Array] = {"file": pa.array(texts, pa.string()), "text": pa.array(texts.values(), pa.string())}
    columns |= {name: pa.array(values, pa.binary()) for name, values in schemas.items()}
    return _write(path, [pa.table(columns)], use_dictionary=list(schemas))


def _table_of(frame: "pd.DataFrame | None") -> pa.Table | None:
    return None if frame is None else pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _write_rows(path: Path, files: Sequence[str], tables: Sequence[pa.Table | None]) -> Path:
    """Write the rows of all cells; those of a task and backbone, which are read together, are a row group."""
    numbered = [
        (Path(files[number]).parts[:2], table.add_column(0, _CELL_COLUMN, pa.array([number] * len(table), pa.int32())))
        for number, table in enumerate(tables)
        if table is not None
    ]
    whole = pa.concat_tables([table for _, table in numbered], promote_options="permissive")
    whole = pa.table({name: _narrow(whole[name]) for name in whole.column_names})
    groups, start = [], 0
    for _, members in groupby(numbered, key=lambda member: member[0]):
        length = sum(len(table) for _, table in members)
        groups.append(whole.slice(start, length))
        start += length
    scalars = [
        field.name for field in whole.schema if not (pa.types.is_list(field.type) or pa.types.is_floating(field.type))
    ]
    return _write(path, groups, use_dictionary=scalars)


def _narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Halve the integers of a column where they allow it: dictionaries do not help lists of tokens."""
    narrow = {pa.int64(): pa.int32(), pa.list_(pa.int64()): pa.list_(pa.int32())}.get(column.type, column.type)
    try:
        return column.cast(narrow)
    except pa.ArrowInvalid:
        return column


def _write(path: Path, groups: Sequence[pa.Table], use_dictionary: list[str]) -> Path:
    options = {**_OPTIONS, "use_dictionary": use_dictionary, "data_page_size": _ONE_PAGE}
    with pq.ParquetWriter(path, groups[0].schema, **options) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=max(1, len(table)))
    return path
