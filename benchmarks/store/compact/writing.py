"""Results are written in the compact form."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.store.compact.columns import column_of, columns_of, table_of, written_values
from benchmarks.store.compact.form import (
    ABOUT,
    CONTENDER,
    FILE,
    FOLDER,
    FORM_VERSION,
    ROWS_FILE,
    STUDY_FILE,
    TIMINGS_FILE,
    VALIDATION_ROWS_FILE,
    TimingColumns,
)
from benchmarks.store.compact.rows import CELL, Layout, alike, joined, layout_of
from benchmarks.store.records import RecordT, TimingT
from benchmarks.store.stored_cells import CELLS_FILE, BaseStoredCell, StoredResults
from consistentee.files import replacing

if TYPE_CHECKING:
    import pandas as pd

_COMPRESSION_LEVEL = 19


def write_compact(
    root: Path,
    results: StoredResults[RecordT, TimingT],
    timing_schema: type[TimingT],
    *,
    kind: str,
    failures: Mapping[str, str],
) -> list[Path]:
    """Write results in the compact form into a folder that holds none, and return the files.

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
    return [
        _write_rows(root / ROWS_FILE, rows, about),
        *([_write_rows(root / VALIDATION_ROWS_FILE, validation, about)] if validation.groups else []),
        _write(root / TIMINGS_FILE, [timings], about, **_for_times(timings)),
        *([] if study is None else [_write(root / STUDY_FILE, [study], about)]),
        _write(root / CELLS_FILE, [_cells(cells)], {**about, "failures": dict(failures)}),
    ]


def _fingerprint(results: StoredResults[RecordT, TimingT]) -> str:
    """Return what says that files were written together."""
    digest = hashlib.sha256()
    for record in (*(cell.record for cell in results.cells), *results.timings):
        digest.update(record.model_dump_json().encode())
    return digest.hexdigest()


def _write(path: Path, groups: Sequence[pa.Table], about: Mapping[str, Any], **encodings: Any) -> Path:
    """Write tables of one schema, each as a row group."""
    schema = groups[0].schema.with_metadata({ABOUT: json.dumps(about)})
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


def _cells(cells: Sequence[BaseStoredCell[RecordT]]) -> pa.Table:
    columns = columns_of(type(cells[0].record))
    rows = [{FOLDER: cell.rows.folder, **written_values(cell.record, columns)} for cell in cells]
    return table_of(rows, {FOLDER: column_of(str), **columns})


def _timings(results: StoredResults[RecordT, TimingT], schema: type[TimingT]) -> pa.Table:
    columns = TimingColumns.of(schema)
    rows = []
    for file, timing in zip(results.timing_files, results.timings, strict=True):
        whole = {FILE: file, **written_values(timing, columns.timing)}
        for place, contender in enumerate(timing.contenders):
            part = {**whole, CONTENDER: place, **written_values(contender, columns.contender)}
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


def _rows(cells: Sequence[BaseStoredCell[RecordT]], frames: "Sequence[pd.DataFrame | None]") -> _Rows:
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


def _study(cells: Sequence[BaseStoredCell[RecordT]]) -> pa.Table | None:
    frames = [(number, cell.rows.study()) for number, cell in enumerate(cells)]
    tables = [
        _plain(frame).add_column(0, CELL, pa.array([number] * len(frame), pa.int32()))
        for number, frame in frames
        if frame is not None
    ]
    return pa.concat_tables(tables) if tables else None


def _plain(frame: "pd.DataFrame") -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
