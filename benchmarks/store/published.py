"""The files of published results: the JSON files and the rows of a run, each as one Parquet file.

``cells.parquet`` and ``timings.parquet`` have a row for each JSON file of the run, in order: ``file`` and ``text``. The
rows of all cells lie one after another in ``rows.parquet`` and ``validation.parquet``, with the columns of the cells'
own files and the number of the cell, which counts the rows of ``cells.parquet`` from 0. A cell has not all of these
columns: the schema of its own file is kept in a column of ``cells.parquet``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.store.folders import CELLS_FILE, HASHES_FILE, PREDICTIONS_FILE, VALIDATION_FILE
from benchmarks.store.hashes import file_fault
from consistentee.errors import UserError

TIMINGS_FILE = "timings.parquet"
ROWS_FILES = {PREDICTIONS_FILE: "rows.parquet", VALIDATION_FILE: "validation.parquet"}
"""File of a cell -> file of the rows of all cells."""
CELL_COLUMN = "cell"
_SHOWN = 200


def read_texts(root: Path, file: str) -> dict[str, str]:
    """Return the texts of ``cells.parquet`` or ``timings.parquet``, by file. Raises UserError if they are damaged."""
    with _readable(root / file):
        if fault := file_fault(root / HASHES_FILE):
            raise ValueError(fault)
        table = _table(root / file)
        return dict(zip(table["file"].to_pylist(), table["text"].to_pylist(), strict=True))


def read_own_rows(root: Path, number: int, name: str) -> pa.Table | None:
    """Return the table of a cell, by the name of its own file; None if it has none. Raises UserError."""
    path = root / ROWS_FILES[name]
    with _readable(path):
        cells = _table(root / CELLS_FILE)
        written = cells[name][number].as_py() if name in cells.column_names else None
        if written is None:
            return None
        schema, first = pa.ipc.read_schema(pa.py_buffer(written)), _first_rows(path, path.stat().st_mtime_ns)
        own = _table(path).slice(first[number], first[number + 1] - first[number])
        return pa.table([_cast(own[field.name], field.type) for field in schema], schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if "null" in str(kind):  # nothing but None and empty lists, which Arrow does not cast
        return pa.array(column.to_pylist(), kind)
    return column.cast(kind)


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
    """Turn everything that can be wrong with a file into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; publish the run again") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:_SHOWN]
        raise UserError(f"{path} cannot be read as published results: {reason}") from error
