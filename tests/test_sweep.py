"""A run of a suite: what is done is kept, what is missing is computed, no end of a run leaves anything half-done."""

import copy
import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import make_task
from rich.console import Console

from benchmarks import analysis
from benchmarks.harness import cell as cell_module
from benchmarks.harness.records import CellRecord
from benchmarks.harness.spec import Filters, load_suite
from benchmarks.harness.storage import RECORD_FILE, TIMING_FILE, read_all
from benchmarks.harness.sweep import RunOutcome, run_suite
from consistentee.data import Split
from consistentee.errors import UserError
from consistentee.files import DiskFullError

BROKEN_METHOD = """
from dataclasses import dataclass
from pathlib import Path
from baselines.references import Full

@dataclass(frozen=True)
class Broken(Full):
    def fit(self, model, task, recipe):
        raise RuntimeError("the flux is not capacitated")
"""


def write_task(folder: Path, name: str, regression: bool = False) -> Path:
    """Write a toy task as files and a YAML."""
    task = make_task(regression=regression)

    def write(file: str, split: Split) -> None:
        rows = [f"{text}\t{label}" for text, label in zip(split.texts, split.labels, strict=True)]
        (folder / file).write_text("\n".join(["text\tlabel", *rows]) + "\n")

    for split in (task.train, task.validation, task.test):
        write(f"{name}-{split.name}.tsv", split)
    files = {"folder": ".", "format": "tsv", "text": "text", "label": "label"}
    files |= {split: f"{name}-{split}.tsv" for split in ("train", "validation", "test")}
    spec = {"schema_version": 1, "name": name, "version": 1, "description": "d", "files": files}
    spec |= {"target": "number", "metrics": ["pearson"]} if regression else {"metrics": ["accuracy"]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


class Bench:
    """A small suite, its results folder, and what its runs said."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.suite_file = folder / "suite.yaml"
        self.said = ""
        self.outcome: RunOutcome | None = None
        self.values = {
            "name": "toy",
            "description": "d",
            "cost": "seconds",
            "tasks": [str(write_task(folder, "toy"))],
            "backbones": [str(backbone)],
            "seeds": [0],
            "recipe": {"epochs": 1, "max_length": 16},
            "methods": ["full", "oracle", "calm-softmax"],
            "bootstrap_resamples": 100,
            "timing": {"rows": 8, "batch_sizes": [1, 4]},
        }

    def write(self, **changes: object) -> Path:
        self.suite_file.write_text(yaml.safe_dump({**self.values, **changes}))
        return self.suite_file

    def run(self, filters: Filters | None = None, *, changes: dict | None = None, **options: object) -> RunOutcome:
        console = Console(file=io.StringIO(), width=1000)
        suite = load_suite(self.write(**(changes or {})))
        try:
            return run_suite(suite, filters, out=self.out, console=console, **options)
        finally:
            self.said = console.file.getvalue()

    def records(self) -> dict[str, CellRecord]:
        return {record.label: record for _, record in read_all(self.out)[0]}

    def folder_of(self, label: str) -> Path:
        return next(folder for folder, record in read_all(self.out)[0] if record.label == label)

    def finished_cells(self) -> list[Path]:
        # A record that is being written lies in a folder of another name.
        return list(self.out.glob(f"cells/*/*/*/*/seed0/{RECORD_FILE}"))

    def leftovers(self) -> list[Path]:
        return [path for path in self.out.rglob("*") if path.name.endswith(".partial")]


@pytest.fixture
def bench(tmp_path: Path, tiny_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench without tables and figures, which take most of the time and are tested elsewhere."""
    monkeypatch.setattr(analysis, "report_files", lambda out: None)
    return Bench(tmp_path, tiny_backbone("bert"))


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Callable[[str], Path]) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("finished"), tiny_backbone("bert"))
    bench.outcome = bench.run()
    return bench


@pytest.fixture
def finished(finished_once: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose suite has run: a copy of its results, so that every test may spoil them."""
    monkeypatch.setattr(analysis, "report_files", lambda out: None)
    bench = copy.copy(finished_once)
    bench.out = tmp_path / "out"
    shutil.copytree(finished_once.out, bench.out)
    return bench


@pytest.fixture
def forbid_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("a cell was computed")

    monkeypatch.setattr(cell_module, "run_cell", fail)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, cells: int, error: BaseException) -> None:
    """Let ``cells`` cells pass, and raise ``error`` in the middle of writing the next one."""
    real = cell_module.write_predictions
    count = iter(range(100))

    def write(*args: object) -> None:
        if next(count) == cells:
            raise error
        real(*args)

    monkeypatch.setattr(cell_module, "write_predictions", write)


def test_whole_run(finished_once):
    bench, outcome = finished_once, finished_once.outcome
    assert (outcome.finished, outcome.computed, outcome.failed, outcome.refused) == (3, 3, (), ())
    assert outcome.table is not None
    written = {path.name for path in bench.out.iterdir()}
    assert {"table.md", "table.csv", "curves.png", "suite.yaml", "environment.json"} <= written
    _, timings, faults = read_all(bench.out)
    assert faults == []
    labels = {contender.label for contender in timings[0].contenders}
    assert labels == {"stock model", "full", "calm-softmax"}
    assert [sample.batch_size for sample in timings[0].contenders[0].samples] == [1, 4]
    layers = {contender.label: contender.average_layers for contender in timings[0].contenders}
    assert (layers["stock model"], layers["full"]) == (4.0, 4.0)
    assert str(bench.folder) not in "".join(path.read_text() for path in bench.out.rglob(RECORD_FILE))
    assert bench.leftovers() == []


def test_second_run_writes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*.json")}
    outcome = finished.run()
    assert (outcome.finished, outcome.computed) == (3, 0)
    assert {path: path.stat().st_mtime_ns for path in finished.out.rglob("*.json")} == before


def test_up_to_date_run_does_not_load_torch(finished):
    code = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.harness.spec import load_suite\nfrom benchmarks.harness.sweep import run_suite\n"
        f"outcome = run_suite(load_suite({str(finished.suite_file)!r}), out=Path({str(finished.out)!r}))\n"
        "assert outcome.computed == 0\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_filtered_runs_add_up_and_keep_each_others_times(bench):
    bench.run(Filters(methods=["full", "calm-softmax"]))
    bench.run(Filters(methods=["pabee"]))
    assert set(bench.records()) == {"full", "calm-softmax", "pabee"}
    labels = {contender.label for contender in read_all(bench.out)[1][0].contenders}
    assert labels == {"stock model", "full", "calm-softmax", "pabee"}
    stamp = next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns
    assert bench.run(Filters(methods=["full"])).computed == 0
    assert next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns == stamp


def test_a_filtered_run_leaves_the_others_alone(finished):
    bench = finished
    before = {path: path.read_bytes() for path in (bench.out / "cells").rglob("*") if path.is_file()}
    bench.run(Filters(methods=["full"]), changes={"recipe": {"epochs": 2, "max_length": 16}})
    assert bench.said.count("is stale") == 1, "only the cell that was asked for is set aside"
    kept = [path for path in before if "/full/" not in str(path)]
    assert kept
    assert all(path.read_bytes() == before[path] for path in kept)


def test_times_that_cannot_be_taken_again_are_kept(finished):
    bench = finished
    shutil.rmtree(bench.out / "artifacts" / "models")
    bench.run(Filters(methods=["pabee"]))
    (kept,) = bench.out.rglob(f"{TIMING_FILE}.stale-1")
    assert "is kept as timing.json.stale-1" in bench.said
    assert "calm-softmax" in kept.read_text()


def test_changed_settings_make_results_stale(finished):
    bench = finished
    outcome = bench.run(changes={"recipe": {"epochs": 2, "max_length": 16}})
    assert outcome.computed == 3
    assert bench.said.count("is stale") == 3
    assert len(list(bench.out.rglob("seed0.stale-1"))) == 3


def test_damaged_files_are_named_and_recomputed(finished):
    bench = finished
    scores = bench.records()["full"].curve_test
    folder = bench.folder_of("full")
    os.truncate(folder / RECORD_FILE, 200)
    next(bench.out.rglob(TIMING_FILE)).write_text("{")
    outcome = bench.run()
    assert outcome.computed == 1
    assert f"{folder / RECORD_FILE} is damaged" in bench.said
    assert "timing.json is damaged" in bench.said
    assert bench.records()["full"].curve_test == scores
    assert len(read_all(bench.out)[1]) == 1


def test_lost_model_is_trained_again_only_if_a_timing_needs_it(finished):
    bench = finished
    shutil.rmtree(bench.out / "artifacts" / "models")
    assert bench.run().computed == 0
    next(bench.out.rglob(TIMING_FILE)).unlink()
    assert bench.run().computed == 2  # the oracle is not timed
    assert len(read_all(bench.out)[1]) == 1


def test_fresh_computes_everything_again(bench):
    bench.run(Filters(methods=["full"]))
    stamp = next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns
    assert bench.run(Filters(methods=["full"]), fresh=True).computed == 1
    assert next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns > stamp


def test_failed_cell_is_noted_and_the_run_goes_on(bench):
    method = bench.folder / "mine.py"
    method.write_text(BROKEN_METHOD)
    filters = Filters(methods=[f"{method}:Broken", "full"])
    outcome = bench.run(filters)
    assert outcome.finished == 1
    (line,) = outcome.failed
    assert re.search(r"Broken.*RuntimeError: the flux is not capacitated", line)
    (note,) = bench.out.rglob("failure.json")
    assert "flux" in note.read_text()
    assert str(Path.home()) + "/" not in note.read_text()
    again = bench.run(filters)
    assert again.computed == 0
    assert again.failed == (line,)
    assert "1 failed before" in bench.said
    assert bench.run(filters, retry_failed=True).computed == 1
    method.write_text(
        BROKEN_METHOD.replace("        raise", "        return super().fit(model, task, recipe)\n        raise")
    )
    from benchmarks.harness import fingerprint

    for cached in (fingerprint.code_fingerprint, fingerprint._tree_of, fingerprint._code_hash):
        cached.cache_clear()  # within one process a file is taken to stay as it is
    mended = bench.run(filters)
    assert mended.computed == 1
    assert mended.failed == ()
    assert list(bench.out.rglob("failure.json")) == []


def test_method_that_is_not_defined_for_a_task_is_refused(bench):
    task = write_task(bench.folder, "numbers", regression=True)
    changes = {"tasks": [str(task)], "methods": ["full", "deebert"]}
    outcome = bench.run(changes=changes)
    assert (outcome.finished, outcome.computed, outcome.failed) == (1, 1, ())
    assert "deebert is not defined for a regression" in outcome.refused[0]
    again = bench.run(changes=changes, retry_failed=True)
    assert (again.computed, len(again.refused)) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["mcdi"]}, "unknown task 'mcdi'"),
        ({"backbones": ["minilm-l7"]}, "unknown backbone 'minilm-l7'"),
        ({"methods": ["full", "pabe"]}, "unknown method 'pabe'"),
        ({"methods": ["full", {"method": "pabee", "parameters": {"tolerence": 1}}]}, "unknown parameter of pabee"),
    ],
)
def test_unknown_names_end_the_run_before_any_training(bench, forbid_cells, changes, message):
    with pytest.raises(UserError, match=message):
        bench.run(changes=changes)


def test_interrupt_keeps_what_is_finished(bench, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    assert set(bench.records()) == {"full"}
    assert bench.leftovers() == []
    assert bench.run().computed == 2


def test_full_disk_ends_the_run_and_keeps_what_is_finished(bench, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(DiskFullError, match="disk full"):
            bench.run()
    assert set(bench.records()) == {"full"}
    assert bench.leftovers() == []
    assert list(bench.out.rglob("failure.json")) == []
    assert bench.run().computed == 2


def test_killed_run_is_finished_by_the_next_one(bench, finished_once):
    bench.write()
    code = (
        "from pathlib import Path\n"
        "from benchmarks.harness.spec import load_suite\nfrom benchmarks.harness.sweep import run_suite\n"
        f"run_suite(load_suite({str(bench.suite_file)!r}), out=Path({str(bench.out)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not bench.finished_cells() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(bench.finished_cells())
    assert done >= 1
    outcome = bench.run()
    assert (outcome.finished, outcome.failed) == (3, ())
    assert outcome.computed == 3 - done, bench.said
    assert "damaged" not in bench.said
    assert bench.leftovers() == []
    for label, record in finished_once.records().items():
        assert bench.records()[label].curve_test == record.curve_test
        assert bench.records()[label].operating_points == record.operating_points
