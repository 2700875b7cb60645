"""Publish a run: turn its hundreds of files into the few small ones that can be committed."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.analysis import write_published_files
from benchmarks.store.folders import CELLS_FILE, ENVIRONMENT_FILE, FAILURE_FILE, HASHES_FILE, RECORD_FILE, SUITE_FILE
from benchmarks.store.hashes import write_json
from benchmarks.store.records import FailureRecord
from benchmarks.store.stored_results import (
    CELL_COLUMN,
    ROWS_FILES,
    TIMINGS_FILE,
    StoredResults,
    failed_cells,
    is_published,
    open_results,
)
from consistentee.errors import UserError
from consistentee.files import PARTIAL, replacing

_OPTIONS = {
    "write_page_checksum": True,
    # One page: texts and answers of many cells are alike, and pages are compressed one by one.
    "data_page_size": 1 << 28,
    "max_rows_per_page": 1 << 30,
}
_FOR_ROWS = _OPTIONS | {"compression": "zstd", "compression_level": 19}
_FOR_TEXTS = _OPTIONS | {"compression": "brotli", "compression_level": 11}  # a tenth smaller, and slow


def publish_run(run: Path, out: Path | None = None) -> list[Path]:
    """Write a run's results as a few Parquet files, with their tables and its figure, and return the files.

    Everything is written next to ``out``, by default ``results/NAME`` with the name of the run's folder, and takes its
    place at once. Other files in ``out``, such as notes, are kept.

    Raises UserError if the run cannot be read whole, or ``out`` holds anything else than published results.
    """
    if is_published(run):
        raise UserError(f"{run} is published already; give the folder of a run")
    out = out or Path("results") / run.resolve().name
    results, failures = whole_results(run), failed_cells(run)
    if out.exists() and not is_published(out) and any(out.iterdir()):
        raise UserError(f"{out} holds other files than published results; give another --out")
    for leftover in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(leftover)
    with replacing(out) as new:
        if out.exists():
            shutil.copytree(out, new, ignore=shutil.ignore_patterns("*.parquet"))
        new.mkdir(exist_ok=True)
        written = _write_results(new, results, failures)
        for file in (run / SUITE_FILE, run / ENVIRONMENT_FILE):
            if file.exists():
                written.append(Path(shutil.copyfile(file, new / file.name)))
        write_json(new / HASHES_FILE, '{"form": 2}', written)
        written.append(new / HASHES_FILE)
        # Everything is read back, because users delete a run once it is published.
        if _contents(results) != _contents(whole_results(new)):
            raise AssertionError(f"{out} does not give back what was written; keep the run")
        written += write_published_files(new)
    return [out / path.relative_to(new) for path in written]


def whole_results(run: Path) -> StoredResults:
    """Read results of either kind. Raises UserError if a file of them cannot be read."""
    results = open_results(run)
    if results.faults:
        raise UserError(f"{results.faults[0]}; run the suite again before you publish it")
    return results


def _contents(results: StoredResults) -> tuple[list[str], list[pa.Table | None]]:
    records = (*(cell.record for cell in results.cells), *results.timings.values())
    rows = [cell.table(name) for cell, name in product(results.cells, ROWS_FILES)]
    return [record.model_dump_json() for record in records], rows


def _write_results(root: Path, results: StoredResults, failures: Mapping[str, FailureRecord]) -> list[Path]:
    texts = {f"{cell.folder}/{RECORD_FILE}": cell.record.model_dump_json() for cell in results.cells}
    texts |= {f"{folder}/{FAILURE_FILE}": failure.model_dump_json() for folder, failure in failures.items()}
    schemas: dict[str, list[bytes | None]] = {}
    written = []
    for name, file in ROWS_FILES.items():
        tables = [cell.table(name) for cell in results.cells]
        found = [None if table is None else table.schema.serialize().to_pybytes() for table in tables]
        schemas[name] = [*found, *[None] * len(failures)]
        if any(found):
            written.append(_write_rows(root / file, tables))
    cells = {"file": list(texts), "text": list(texts.values()), **schemas}
    times = {"file": list(results.timings), "text": [timing.model_dump_json() for timing in results.timings.values()]}
    written.append(_write(root / CELLS_FILE, pa.table(cells), use_dictionary=list(schemas), **_FOR_TEXTS))
    return [*written, _write(root / TIMINGS_FILE, pa.table(times), use_dictionary=[], **_FOR_TEXTS)]


def _write_rows(path: Path, tables: Sequence[pa.Table | None]) -> Path:
    numbered = [
        table.add_column(0, CELL_COLUMN, pa.array([number] * len(table), pa.int32()))
        for number, table in enumerate(tables)
        if table is not None
    ]
    whole = pa.concat_tables(numbered, promote_options="permissive")
    whole = pa.table({name: _narrow(whole[name]) for name in whole.column_names})
    scalars = [
        field.name for field in whole.schema if not (pa.types.is_list(field.type) or pa.types.is_floating(field.type))
    ]
    return _write(path, whole, use_dictionary=scalars, **_FOR_ROWS)


def _narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Halve the integers of a column where they allow it: dictionaries do not help lists of tokens."""
    narrow = {pa.int64(): pa.int32(), pa.list_(pa.int64()): pa.list_(pa.int32())}.get(column.type, column.type)
    try:
        return column.cast(narrow)
    except pa.ArrowInvalid:
        return column


def _write(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, row_group_size=max(1, len(table)), **options)
    return path
