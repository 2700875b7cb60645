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
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.store.folders import CELLS_FILE, HASHES_FILE, PREDICTIONS_FILE, VALIDATION_FILE
from benchmarks.store.hashes import file_fault
from consistentee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

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
        return _texts(root / file, (root / file).stat().st_mtime_ns)


def read_own_rows(root: Path, number: int, name: str) -> "pd.DataFrame | None":
    """Return the table of a cell, by the name of its own file; None if it has none. Raises UserError."""
    path, cells = root / ROWS_FILES[name], root / CELLS_FILE
    with _readable(path):
        written = _schemas(cells, cells.stat().st_mtime_ns, name)[number]
        if written is None:
            return None
        schema = pa.ipc.read_schema(pa.py_buffer(written))
        rows, cell = _rows(path, path.stat().st_mtime_ns)
        first, end = np.searchsorted(cell, [number, number + 1])
        own = rows.slice(first, end - first)
        table = pa.table([_cast(own[field.name], field.type) for field in schema], schema=schema)
        return table.to_pandas(use_threads=False, ignore_metadata=True)  # a third of the time; the index is the default


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if "null" in str(kind):  # nothing but None and empty lists, which Arrow does not cast
        return pa.array(column.to_pylist(), kind)
    return column.cast(kind)


# Caches are by the time at which a file changed: a folder may be published again while it is open.


@lru_cache(maxsize=8)
def _texts(path: Path, changed: int) -> dict[str, str]:
    table = pq.read_table(path, columns=["file", "text"], page_checksum_verification=True)
    return dict(zip(table["file"].to_pylist(), table["text"].to_pylist(), strict=True))


@lru_cache(maxsize=8)
def _schemas(path: Path, changed: int, name: str) -> list[bytes | None]:
    table = pq.read_table(path, page_checksum_verification=True)
    return list(table[name].to_pylist()) if name in table.column_names else [None] * len(table)


@lru_cache(maxsize=4)
def _rows(path: Path, changed: int) -> "tuple[pa.Table, NDArray[np.int32]]":
    """Read the rows of all cells, and the number of the cell of each, which rises."""
    table = pq.read_table(path, page_checksum_verification=True).combine_chunks()
    return table, table[CELL_COLUMN].to_numpy()


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
