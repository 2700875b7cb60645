"""Publish a run: what it left behind in hundreds of files becomes the few small ones that can be committed."""

import shutil
from pathlib import Path

from benchmarks.analysis import write_published_files
from benchmarks.kinds import kind_named
from benchmarks.store.folders import ENVIRONMENT_FILE, SUITE_FILE
from benchmarks.store.published import seal_published, write_published
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from benchmarks.store.stored_results import (
    StoredCell,
    StoredResults,
    failure_texts,
    is_published,
    kind_of_results,
    open_results,
)
from consistentee.errors import UserError
from consistentee.files import PARTIAL, replacing


def publish_run(run: Path, out: Path | None = None) -> list[Path]:
    """Write a run's results as a few Parquet files, with their tables and its figure, and return the files.

    Everything is written beside ``out`` first, and takes its place at once. Other files in ``out``, such as notes, are
    kept.

    Args:
        run: the folder of a run.
        out: where to; by default ``results/NAME``, with the name of the run's folder.

    Raises:
        UserError: the folder is not of a run, something in it cannot be read, or ``out`` holds anything else than
            published results.
    """
    out = Path("results") / run.resolve().name if out is None else out
    if is_published(run):
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
    if out.exists() and not is_published(out) and any(out.iterdir()):
        raise UserError(f"{out} holds something else than published results; give another --out")
    for leftover in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(leftover)
    with replacing(out) as new:
        if out.exists():
            shutil.copytree(out, new, ignore=shutil.ignore_patterns("*.parquet"))
        new.mkdir(exist_ok=True)
        written = write_published(new, results, failure_texts(run))
        for name in (SUITE_FILE, ENVIRONMENT_FILE):
            if (run / name).exists():
                written.append(Path(shutil.copyfile(run / name, new / name)))
        written.append(seal_published(new, written))
        # Everything is read back before anybody deletes the run: each row costs more than this.
        if not _are_equal(results, open_results(new, kind.record, kind.timing)):
            raise AssertionError(f"{out} does not give back what was written; keep the run")
        written += write_published_files(new)
    return [out / path.relative_to(new) for path in written]


def _are_equal(
    results: StoredResults[BaseRecord, BaseTimingRecord], published: StoredResults[BaseRecord, BaseTimingRecord]
) -> bool:
    return _texts(results) == _texts(published) and all(
        _have_equal_rows(*cells) for cells in zip(results.cells, published.cells, strict=True)
    )


def _texts(results: StoredResults[BaseRecord, BaseTimingRecord]) -> list[str]:
    return [record.model_dump_json() for record in (*(cell.record for cell in results.cells), *results.timings)]


def _have_equal_rows(ours: StoredCell[BaseRecord], theirs: StoredCell[BaseRecord]) -> bool:
    kept = [(cell.predictions(), cell.validation(), cell.study()) for cell in (ours, theirs)]
    return all(one.equals(other) if one is not None else other is None for one, other in zip(*kept, strict=True))
