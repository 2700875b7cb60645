"""Publishing a run: what it left behind in hundreds of files becomes the few small ones that can be committed."""

import shutil
from pathlib import Path

from benchmarks.analysis import write_published_files
from benchmarks.kinds.kind import kind_named
from benchmarks.store.compact.writing import write_compact
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from benchmarks.store.stored_results import (
    RowSource,
    StoredResults,
    failed_cells,
    is_compact,
    kind_of_results,
    open_results,
)
from consistentee.errors import UserError

_COPIED = ("suite.yaml", "environment.json")


def publish_run(run: Path, out: Path | None = None) -> list[Path]:
    """Write the compact form of a run's results, with its tables and its figure, and return the files.

    Args:
        run: the folder of a run.
        out: where to; by default ``results/NAME``, with the name of the run's folder.

    Raises:
        UserError: the folder is not of a run, something in it cannot be read, or ``out`` holds a run.
    """
    out = Path("results") / run.resolve().name if out is None else out
    if is_compact(run):
        raise UserError(f"{run} is published already; give the folder of a run")
    if (out / "cells").exists():
        raise UserError(f"{out} holds a run; give another --out")
    kind_name = kind_of_results(run)
    if kind_name is None:
        raise UserError(f"{run} holds no results; `consistentee run SUITE --out {run}` makes some")
    kind = kind_named(kind_name)
    results = open_results(run, kind.record, kind.timing)
    if results.faults:
        raise UserError(f"{results.faults[0]}; run the suite again before you publish it")
    written = write_compact(out, results, kind.timing, kind=kind_name, failures=failed_cells(run))
    _check(results, open_results(out, kind.record, kind.timing), out)
    for name in _COPIED:
        if (run / name).exists():
            written.append(Path(shutil.copyfile(run / name, out / name)))
    return [*written, *write_published_files(out)]


def _check(
    results: StoredResults[BaseRecord, BaseTimingRecord],
    published: StoredResults[BaseRecord, BaseTimingRecord],
    out: Path,
) -> None:
    """Read everything back before anybody deletes the run: each row costs more than this."""
    same = _texts(results) == _texts(published) and all(
        _same_rows(ours.rows, theirs.rows) for ours, theirs in zip(results.cells, published.cells, strict=True)
    )
    if not same:
        raise AssertionError(f"{out} does not give back what was written; keep the run")


def _same_rows(ours: RowSource, theirs: RowSource) -> bool:
    kept = [(rows.predictions(), rows.validation(), rows.study()) for rows in (ours, theirs)]
    return all(one.equals(other) if one is not None else other is None for one, other in zip(*kept, strict=True))


def _texts(results: StoredResults[BaseRecord, BaseTimingRecord]) -> list[str]:
    return [record.model_dump_json() for record in (*(cell.record for cell in results.cells), *results.timings)]
