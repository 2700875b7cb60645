"""Publish a run: turn its hundreds of files into the few small ones that can be committed."""

import shutil
from pathlib import Path

import pandas as pd

from benchmarks.analysis import write_published_files
from benchmarks.analysis.frames import load_results
from benchmarks.store.folders import CELLS_FILE, ENVIRONMENT_FILE, HASHES_FILE, SUITE_FILE, frame_file
from benchmarks.store.frames import FRAMES, write_published_frame
from benchmarks.store.hashes import write_json
from benchmarks.store.record_tables import write_records
from benchmarks.store.results_folder import (
    FAILURES_FILE,
    TIMES_FILE,
    TIMINGS_FILE,
    StoredResults,
    is_published,
    open_results,
)
from consistentee.errors import UserError
from consistentee.files import PARTIAL, replacing


def publish_run(run: Path, out: Path | None = None) -> list[Path]:
    """Write a run's results as a few Parquet files, with their tables and its figure, and return the files.

    Everything is written next to ``out``, by default ``results/NAME`` with the name of the run's folder, and takes its
    place at once. Other files in ``out``, such as notes, are kept.

    Raises UserError if the run cannot be read whole, or ``out`` holds anything else than published results.
    """
    if is_published(run):
        raise UserError(f"{run} is published already; give the folder of a run")
    out, results = out or Path("results") / run.resolve().name, open_results(run)
    if results.faults:
        raise UserError(f"{results.faults[0]}; run the suite again before you publish it")
    if out.exists() and not is_published(out) and any(out.iterdir()):
        raise UserError(f"{out} holds other files than published results; give another --out")
    for leftover in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(leftover)
    with replacing(out) as new:
        if out.exists():
            shutil.copytree(out, new, ignore=shutil.ignore_patterns("*.parquet"))
        new.mkdir(exist_ok=True)
        written = write_results(results, new)
        for file in (run / SUITE_FILE, run / ENVIRONMENT_FILE):
            if file.exists():
                written.append(Path(shutil.copyfile(file, new / file.name)))
        written.append(seal_results(new, written))
        # Everything is read back, because users delete a run once it is published.
        if not equal_results(results, open_results(new)):
            raise AssertionError(f"{out} does not give back what was written; keep the run")
        written += write_published_files(load_results(new), new)
    return [out / path.relative_to(new) for path in written]


def write_results(results: StoredResults, root: Path) -> list[Path]:
    """Write all records and frames into a folder, and return the files."""
    write_records(root / CELLS_FILE, results.cells)
    write_records(root / TIMINGS_FILE, results.timings)
    write_records(root / FAILURES_FILE, results.failures)
    written = [root / name for name in (CELLS_FILE, TIMINGS_FILE, FAILURES_FILE)]
    frames = {frame_file(name): results.frame(name) for name in FRAMES} | {TIMES_FILE: results.times()}
    for file, frame in frames.items():
        if len(frame):
            write_published_frame(root / file, frame)
            written.append(root / file)
    return written


def seal_results(root: Path, files: list[Path]) -> Path:
    """Write the hashes of published files."""
    write_json(root / HASHES_FILE, '{"form": 3}', files)
    return root / HASHES_FILE


def equal_results(first: StoredResults, second: StoredResults) -> bool:
    """Check whether two folders hold the same records and frames, in the same order."""
    records = [(list(one.cells.items()), list(one.timings.items()), one.failures) for one in (first, second)]
    frames = [[*(one.frame(name) for name in FRAMES), one.times()] for one in (first, second)]
    return records[0] == records[1] and all(map(_equal_frames, *frames))


def _equal_frames(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    try:
        pd.testing.assert_frame_equal(first, second, check_exact=True, check_dtype=False)
    except AssertionError:
        return False
    return True
