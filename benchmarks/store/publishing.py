"""Write published results: the JSON texts and the rows of all cells of a run, in a few Parquet files."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.store.folders import (
    CALIBRATION_FILE,
    CELLS_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    VALIDATION_FILE,
)
from benchmarks.store.published import CELL_COLUMN, ROWS_FILES, TIMINGS_FILE
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from benchmarks.store.sealing import write_json
from benchmarks.store.stored_results import RowSource, StoredResults

if TYPE_CHECKING:
    import pandas as pd

_READERS: "dict[str, Callable[[RowSource], pd.DataFrame | None]]" = {
    PREDICTIONS_FILE: lambda rows: rows.predictions(),
    VALIDATION_FILE: lambda rows: rows.validation(),
    CALIBRATION_FILE: lambda rows: rows.study(),
}
_OPTIONS = {"compression": "zstd", "compression_level": 19, "write_page_checksum": True}
_ONE_PAGE = 1 << 28  # bytes: texts are alike, and pages are compressed one by one


def write_published(
    root: Path, results: StoredResults[BaseRecord, BaseTimingRecord], failures: Mapping[str, str]
) -> list[Path]:
    """Write results into a folder, which holds none, and return the files.

    Args:
        root: the folder.
        results: of a run, rows included.
        failures: by the folders of cells without a record, the texts of the notes.

    Raises:
        UserError: the rows of a cell cannot be read.
    """
    texts = {f"{cell.rows.folder}/{RECORD_FILE}": cell.record.model_dump_json() for cell in results.cells}
    texts |= {f"{folder}/{FAILURE_FILE}": text for folder, text in failures.items()}
    schemas: dict[str, list[bytes | None]] = {}
    written = []
    for name, read in _READERS.items():
        frames = [read(cell.rows) for cell in results.cells]
        tables = [None if frame is None else _table_of(frame) for frame in frames]
        found = [None if table is None else table.schema.serialize().to_pybytes() for table in tables]
        schemas[name] = [*found, *[None] * len(failures)]
        if any(found):
            written.append(_write_rows(root / ROWS_FILES[name], list(texts), tables))
    times = {file: timing.model_dump_json() for file, timing in zip(results.timing_files, results.timings, strict=True)}
    return [
        *written,
        _write_texts(root / CELLS_FILE, texts, schemas),
        _write_texts(root / TIMINGS_FILE, times),
    ]


def seal_published(root: Path, files: Sequence[Path]) -> Path:
    """Write the hashes of the files of published results, and return the file that has them."""
    write_json(root / HASHES_FILE, json.dumps({"form": 2}), files)
    return root / HASHES_FILE


def _write_texts(path: Path, texts: Mapping[str, str], more: Mapping[str, list[bytes | None]] | None = None) -> Path:
    columns: dict[str, pa.Array] = {"file": pa.array(texts, pa.string()), "text": pa.array(texts.values(), pa.string())}
    columns |= {name: pa.array(values, pa.binary()) for name, values in (more or {}).items()}
    _write(path, [pa.table(columns)], use_dictionary=list(more or {}), data_page_size=_ONE_PAGE)
    return path


def _table_of(frame: "pd.DataFrame") -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _write_rows(path: Path, files: Sequence[str], tables: Sequence[pa.Table | None]) -> Path:
    """Write the rows of all cells; those of a task and backbone, which are read together, are a row group."""
    numbered = [
        (Path(files[number]).parts[:2], table.add_column(0, CELL_COLUMN, pa.array([number] * len(table), pa.int32())))
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
    _write(path, groups, use_dictionary=scalars, data_page_size=_ONE_PAGE)
    return path


def _narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Halve the integers of a column where they allow it: dictionaries do not help lists of tokens."""
    narrow = {pa.int64(): pa.int32(), pa.list_(pa.int64()): pa.list_(pa.int32())}.get(column.type, column.type)
    try:
        return column.cast(narrow)
    except pa.ArrowInvalid:
        return column


def _write(path: Path, groups: Sequence[pa.Table], **options: object) -> None:
    with pq.ParquetWriter(path, groups[0].schema, **_OPTIONS, **options) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=max(1, len(table)))
