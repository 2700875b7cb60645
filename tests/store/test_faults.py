"""Nothing is lost when a write fails, and nothing damaged is used in silence."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path

import pytest
from small_suite import Bench

from benchmarks import analysis
from benchmarks.run import pool
from benchmarks.run.pool import compute_here
from benchmarks.store.folders import FAILURE_FILE, write_text
from benchmarks.store.verify import faults_of
from consistentee.errors import UserError

SETTINGS = {
    "methods": ["full", "majority"],
    "recipe": {"epochs": 1, "max_length": 8, "max_rows": 8},
    "validation_rows": 4,
    "test_rows": 4,
    "timing": {"rows": 2, "batch_sizes": [1], "rounds": 3, "warmup_batches": 0},
}
CALLS = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "link"), (tempfile, "mkdtemp"), (shutil, "copyfile")]
"""What every write goes through: content reaches the disk, then its place."""


class Writes:
    """Counts the calls that write, and lets one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.failing: int | None = None
        for module, name in CALLS:
            patch.setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, call: Callable[..., object]) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            self.count += 1
            if self.count == self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments, **options)

        return watched

    @contextmanager
    def fault_at(self, number: int | None) -> Iterator[None]:
        """Let the call of this number fail, counted from 1 in this block; with None count them alone."""
        self.count, self.failing = 0, number
        try:
            with suppress(OSError, UserError):
                yield
        finally:
            self.failing = None


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def run_here(bench: Bench) -> None:
    """Run the suite of a bench with all jobs in this process, and without tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "execute", lambda job, threads=None: compute_here(job))
        patch.setattr(analysis, "report_files", lambda out, just_computed: None)
        bench.outcome = bench.run(changes=SETTINGS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_two_tables(folder: Path) -> list[Path]:
    """Stand in for the tables and the figure of a publication."""
    for name in ("table.md", "table.csv"):
        write_text(folder / name, name)
    return [folder / "table.md", folder / "table.csv"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Callable[[str], Path]) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), tiny_backbone("bert"))
    run_here(bench)
    return bench


def test_a_fault_at_any_write_of_a_run_costs_nothing_but_time(undisturbed, tmp_path, writes):
    def elsewhere(number: int | None) -> Bench:
        bench = copy(undisturbed)
        bench.out = tmp_path / str(number)
        with writes.fault_at(number):
            run_here(bench)
        return bench

    elsewhere(None)
    total = writes.count
    print(f"a run of two cells and their times writes {total} times")
    assert total > 80
    for number in range(1, total + 1):
        bench = elsewhere(number)
        run_here(bench)
        assert bench.outcome.failed == (), number
        assert bench.results() == undisturbed.results(), number
        assert (len(bench.read().timings), list(faults_of(bench.out))) == (1, []), number
        assert not list(bench.out.rglob(FAILURE_FILE))
        shutil.rmtree(bench.out)
