"""Nothing is lost when a write fails, and nothing damaged is used in silence."""

import errno
import gc
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from small_suite import Bench

from benchmarks.commands import publish
from benchmarks.commands.publish import faults_of, publish_run
from benchmarks.measure import flops
from benchmarks.run import pool
from benchmarks.run.pool import compute_here
from benchmarks.store.folders import LOG_FILE
from benchmarks.store.hashes import write_text
from consistentee.errors import UserError

SETTINGS = {
    "methods": ["full"],
    "recipe": {"epochs": 1, "max_length": 8, "max_rows": 8},
    "validation_rows": 4,
    "test_rows": 4,
    "timing": {"rows": 2, "batch_sizes": [1], "rounds": 3, "warmup_batches": 0},
}
CALLS = [(tempfile, "mkdtemp"), (os, "fsync"), (os, "replace"), (os, "rename"), (os, "link"), (shutil, "copyfile")]
"""The steps of every write: a place to write, content that reaches the disk, and the name it gets."""

Site = tuple[str, int]
"""One of the calls that write: the file or folder that is written, and how many calls of its writing came before."""


class Writes:
    """Notes the calls that write, and lets those fail that are asked for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[Site] = []
        self._fails: Callable[[int, Site], bool] | None = None
        self._writing = ("", 0)
        for module, name in CALLS:
            patch.setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, call: Callable[..., object]) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            if ".status" in str(arguments[:1]):  # it is written once a second, and no loss
                return call(*arguments, **options)
            if "prefix" in options:
                place = re.sub(r"\.\w+\.partial", "", str(options.get("dir")))
                self._writing = (f"{place}/{options['prefix']}", 0)
            site = self._writing
            self._writing = (site[0], site[1] + 1)
            self.seen.append(site)
            if self._fails is not None and self._fails(len(self.seen), site):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments, **options)

        return watched

    @contextmanager
    def failing(self, fails: Callable[[int, Site], bool]) -> Iterator[None]:
        """Let the calls fail for whose number (from 1) and site ``fails`` is true."""
        self.seen, self._fails = [], fails
        try:
            with suppress(OSError, UserError):
                yield
        finally:
            self._fails = None


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Leave out what takes time and writes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda generation=2: 0)
        patch.setattr(flops, "count_operations", lambda call: (1, call()))
        yield


def run_here(bench: Bench, *, retry_failed: bool = False) -> None:
    """Run the suite of a bench with all jobs in this process, and without tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "execute", lambda job, threads=None: compute_here(job))
        patch.setattr("benchmarks.run.sweep.report", lambda run: None)
        bench.outcome = bench.run(changes=SETTINGS, retry_failed=retry_failed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Callable[[str], Path]) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), tiny_backbone("bert"))
    run_here(bench)
    return bench


def test_every_write_of_a_run_fails_once(undisturbed, tmp_path, writes):
    bench, failed = undisturbed.elsewhere(tmp_path / "out"), set()

    def is_new(number: int, site: Site) -> bool:
        is_new = site not in failed
        failed.add(site)
        return is_new

    before = -1
    while len(failed) > before:
        before = len(failed)
        with writes.failing(is_new):
            run_here(bench, retry_failed=True)
    assert len(failed) > 40
    assert bench.outcome.failed == ()
    assert bench.results() == undisturbed.results()
    assert (len(bench.read().timings), list(faults_of(bench.out))) == (1, [])


def write_two_tables(*arguments: object) -> list[Path]:
    """Stand in for the tables and the figure of a publication, in the folder that comes last."""
    folder = Path(str(arguments[-1]))
    for name in ("table.md", "headline.csv"):
        write_text(folder / name, name)
    return [folder / "table.md", folder / "headline.csv"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fault_at_any_write_of_publish_keeps_the_old_or_the_new(undisturbed, tmp_path, writes, monkeypatch):
    monkeypatch.setattr(publish, "write_published_files", write_two_tables)
    publish_run(undisturbed.out, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    for name in ("table.md", "suite.yaml", "notes.csv"):
        (tmp_path / "old" / name).write_text("old")
    new, old = files_of(tmp_path / "new"), files_of(tmp_path / "old")

    new["notes.csv"] = b"old"
    out = tmp_path / "results" / "mine"

    def publish_over_old(number: int) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)
        with writes.failing(lambda count, site: count == number):
            publish_run(undisturbed.out, out)

    publish_over_old(0)
    total = len(writes.seen)
    assert total > 20
    for number in range(1, total + 1):
        publish_over_old(number)
        assert files_of(out) in (old, new), number
    publish_run(undisturbed.out, out)
    assert files_of(out) == new
    assert [path.name for path in out.parent.iterdir()] == ["mine"]


def test_a_publication_that_is_killed_between_its_renames_comes_back(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "write_published_files", write_two_tables)
    out = tmp_path / "results" / "mine"
    publish_run(undisturbed.out, out)
    old = files_of(out)
    out.rename(out.with_name(".mine.old"))
    (fault,) = faults_of(out)
    assert ".mine.old: left by a publication that was interrupted" in fault
    publish_run(undisturbed.out, out)
    assert files_of(out) == old
    assert [path.name for path in out.parent.iterdir()] == ["mine"]


def named(root: Path) -> bool:
    try:
        return bool(list(faults_of(root)))
    except UserError:
        return True


def test_a_changed_byte_in_a_file_of_any_kind_is_named(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "write_published_files", write_two_tables)
    publish_run(undisturbed.out, tmp_path / "published")
    for root in (undisturbed.out, tmp_path / "published"):
        kinds = {}
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.stat().st_size and path.name not in (LOG_FILE, "table.md", "headline.csv"):
                kinds[path.parent.name[:8], path.suffix] = path
        assert len(kinds) >= 3
        for path in kinds.values():
            content = path.read_bytes()
            for place in (0, len(content) // 2, -9):
                changed = bytearray(content)
                changed[place] ^= 1
                path.write_bytes(changed)
                assert named(root), f"{path}, byte {place}"
            path.write_bytes(content)
        assert not named(root)
