"""A run of a suite: what is done is kept, what is missing is computed, no end of a run leaves anything half-done."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import small_suite
from small_suite import Bench, wait_until, write_task

from benchmarks.run import plan
from benchmarks.run.dry_run import plan_lines
from benchmarks.run.pool import Schedule
from benchmarks.specs.suites import Filters, load_suite
from benchmarks.store.folders import RECORD_FILE, TIMING_FILE
from benchmarks.store.method_versions import method_version
from consistentee.errors import UserError
from consistentee.files import DiskFullError

METHOD = """
from dataclasses import dataclass
from baselines.references import Full

@dataclass(frozen=True)
class Mine(Full):
    def fit(self, model, task, recipe):
        {statement}
        return super().fit(model, task, recipe)
"""
BROKEN_METHOD = """
from dataclasses import dataclass
from pathlib import Path
from baselines.references import Full

@dataclass(frozen=True)
class Broken(Full):
    def fit(self, model, task, recipe):
        raise RuntimeError("the flux is not capacitated")
"""


def write_method(folder: Path, statement: str) -> Path:
    """Write a method that does something before it trains."""
    path = folder / "mine.py"
    path.write_text(METHOD.format(statement=statement))
    forget_code()
    return path


def forget_code() -> None:
    """Let code be read again: within one process a file is taken to stay as it is."""
    method_version.cache_clear()


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def bench(tmp_path: Path, tiny_backbone: Callable[[str], Path], unreported: None) -> Bench:
    return Bench(tmp_path, tiny_backbone("bert"))


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Callable[[str], Path]) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("finished"), tiny_backbone("bert"))
    bench.outcome = bench.run()
    return bench


@pytest.fixture
def finished(finished_once: Bench, tmp_path: Path, unreported: None) -> Bench:
    """A bench whose suite has run: a copy of its results, so that every test may spoil them."""
    bench = copy.copy(finished_once)
    bench.out = tmp_path / "out"
    shutil.copytree(finished_once.out, bench.out)
    return bench


@pytest.fixture
def forbid_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("a cell was computed")

    monkeypatch.setattr(small_suite, "compute_here", fail)


def test_whole_run(finished_once):
    bench, outcome = finished_once, finished_once.outcome
    assert (outcome.finished, outcome.computed, outcome.failed, outcome.refused) == (3, 3, (), ())
    assert outcome.table is not None
    written = {path.name for path in bench.out.iterdir()}
    assert {"table.md", "suite.yaml", "environment.json"} <= written
    assert any(name.endswith(".png") for name in written)
    found = bench.read()
    assert found.faults == []
    labels = {contender.label for contender in found.timings[0].contenders}
    assert labels == {"stock model", "full", "calm-softmax"}
    assert [sample.batch_size for sample in found.timings[0].contenders[0].samples] == [1, 4]
    layers = {contender.label: contender.average_layers for contender in found.timings[0].contenders}
    assert (layers["stock model"], layers["full"]) == (4.0, 4.0)
    assert str(bench.folder) not in "".join(path.read_text() for path in bench.out.rglob(RECORD_FILE))
    assert bench.leftovers() == []


def test_times_may_be_left_to_a_later_run(bench):
    changes = {"methods": ["full", "majority"]}
    outcome = bench.run(changes=changes, times=False)
    assert (outcome.finished, outcome.computed, outcome.failed) == (2, 2, ())
    assert bench.read().timings == []
    lines = plan_lines(load_suite(bench.suite_file), out=bench.out, times=False)
    assert not [line for line in lines if line.startswith("to time")]
    later = bench.run(changes=changes)
    assert later.computed == 0
    assert {contender.label for contender in bench.read().timings[0].contenders} == {"stock model", "full", "majority"}


def test_second_run_writes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*.json")}
    outcome = finished.run()
    assert (outcome.finished, outcome.computed) == (3, 0)
    assert {path: path.stat().st_mtime_ns for path in finished.out.rglob("*.json")} == before


def test_up_to_date_run_does_not_load_torch(finished):
    code = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.specs.suites import load_suite\nfrom benchmarks.run.sweep import run_suite\n"
        f"outcome = run_suite(load_suite({str(finished.suite_file)!r}), out=Path({str(finished.out)!r}))\n"
        "assert outcome.computed == 0\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_filtered_runs_add_up_and_keep_each_others_times(finished):
    bench = finished
    bench.run(Filters(methods=["pabee"]))
    assert set(bench.records()) == {"full", "oracle", "calm-softmax", "pabee"}
    labels = {contender.label for contender in bench.read().timings[0].contenders}
    assert labels == {"stock model", "full", "calm-softmax", "pabee"}
    stamp = next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns
    assert bench.run(Filters(methods=["full"])).computed == 0
    assert next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("untimed")
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
    (kept,) = bench.out.rglob("timing-1.json")
    assert "is kept as timing-1.json" in bench.said
    assert "calm-softmax" in kept.read_text()
    assert bench.run(changes={"methods": ["full", "oracle", "calm-softmax", "pabee"]}).computed == 0
    labels = [{contender.label for contender in timing.contenders} for timing in bench.read().timings]
    assert labels == [{"stock model", "pabee"}, {"stock model", "full", "calm-softmax"}], "the last one comes first"


@pytest.mark.usefixtures("untimed")
def test_changed_settings_make_results_stale(finished):
    bench = finished
    outcome = bench.run(changes={"recipe": {"epochs": 2, "max_length": 16}})
    assert outcome.computed == 3
    assert bench.said.count("is stale") == 3
    assert len(list(bench.out.rglob("seed0.stale-1"))) == 3


@pytest.mark.usefixtures("untimed")
def test_a_label_with_other_parameters_is_no_second_curve(finished):
    bench = finished
    entry = {"method": "pabee", "label": "mine", "parameters": {"tolerance": 0.5}}
    bench.run(Filters(methods=["mine"]), changes={"methods": ["full", entry]})
    entry["parameters"] = {"tolerance": 0.25}
    plan = plan_lines(load_suite(bench.write(methods=["full", entry])), Filters(methods=["mine"]), out=bench.out)
    assert "the suite has other parameters under this label): it would be set aside" in plan[0]
    bench.run(Filters(methods=["mine"]), changes={"methods": ["full", entry]})
    assert bench.said.count("the suite has other parameters under this label") == 1
    found = [cell.record for cell in bench.read().cells if cell.record.label == "mine"]
    assert [record.parameters["tolerance"] for record in found] == [0.25]


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
    assert len(bench.read().timings) == 1


def test_lost_model_is_trained_again_only_if_a_timing_needs_it(finished):
    bench = finished
    shutil.rmtree(bench.out / "artifacts" / "models")
    assert bench.run().computed == 0
    next(bench.out.rglob(TIMING_FILE)).unlink()
    lines = plan_lines(load_suite(bench.write()), out=bench.out)
    assert any("2 to run (2 again, for their times: the models are gone)" in line for line in lines)
    assert sum(line.startswith("again ") for line in lines) == 2
    assert bench.run().computed == 2  # the oracle is not timed
    assert len(bench.read().timings) == 1


def test_times_at_knobs_of_older_rules_stand_where_the_model_is_gone(finished, monkeypatch):
    bench = finished
    chosen = plan.timed_knobs

    def moved(records, protocol):
        return {key: [-1.0] if knobs else [] for key, knobs in chosen(records, protocol).items()}

    monkeypatch.setattr(plan, "timed_knobs", moved)
    due = ("to time", "again")
    assert any(line.startswith(due) for line in plan_lines(load_suite(bench.write()), out=bench.out))
    shutil.rmtree(bench.out / "artifacts" / "models")
    assert not any(line.startswith(due) for line in plan_lines(load_suite(bench.write()), out=bench.out))
    assert bench.run().computed == 0
    assert "not timed" not in bench.said


def test_fresh_computes_everything_again(finished):
    bench = finished
    stamp = next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns
    assert bench.run(Filters(methods=["full"]), fresh=True).computed == 1
    assert next(bench.out.rglob(TIMING_FILE)).stat().st_mtime_ns > stamp


@pytest.mark.usefixtures("untimed")
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
    forget_code()
    mended = bench.run(filters)
    assert mended.computed == 1
    assert mended.failed == ()
    assert list(bench.out.rglob("failure.json")) == []


@pytest.mark.usefixtures("untimed")
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


@pytest.mark.usefixtures("untimed")
def test_interrupt_keeps_what_is_finished(bench):
    bench.write()
    process = bench.start()
    wait_until(lambda: bench.finished_cells() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    assert process.wait(120) == 130
    assert bench.leftovers() == []
    done = len(bench.finished_cells())
    assert 1 <= done < 3
    assert bench.run().computed == 3 - done


@pytest.mark.usefixtures("untimed")
def test_full_disk_ends_the_run_and_keeps_what_is_finished(bench):
    full_disk = write_method(bench.folder, "raise OSError(28, 'No space left on device')")
    methods = ["full", f"{full_disk}:Mine", "oracle"]
    with pytest.raises(DiskFullError, match="disk full"):
        bench.run(Filters(methods=methods), schedule=Schedule())
    assert set(bench.records()) == {"full"}
    assert bench.leftovers() == []
    assert list(bench.out.rglob("failure.json")) == []
    assert bench.run(Filters(methods=["full", "oracle"])).computed == 1


@pytest.mark.usefixtures("untimed")
def test_cell_whose_process_dies_is_a_failure_that_names_the_signal(bench):
    statement = "import os, signal; os.kill(os.getpid(), signal.{})"
    methods = []
    for name in ("SIGKILL", "SIGSEGV"):
        (bench.folder / name).mkdir()
        methods.append(f"{write_method(bench.folder / name, statement.format(name))}:Mine")
    changes = {"methods": [{"method": method, "label": method[-15:-12]} for method in methods] + ["full"]}
    outcome = bench.run(changes=changes, schedule=Schedule())
    assert outcome.finished == 1
    assert [re.search(r"its process was ended by signal (\w+)", line)[1] for line in outcome.failed] == [
        "SIGKILL",
        "SIGSEGV",
    ]
    assert any("mine.py" in note.read_text() for note in bench.out.rglob("failure.json")), "where it died is kept"
    tries = [bench.run(changes=changes, schedule=Schedule()).computed for _ in range(2)]
    assert tries == [2, 0], "the next run tries once more, without being asked to"
    assert bench.leftovers() == []


def test_threads_sleep_while_they_wait_in_a_cell_and_not_in_a_timing(bench):
    method, seen, before = write_method(bench.folder, "pass"), bench.folder / "seen", dict(os.environ)
    with method.open("a") as file:
        file.write(
            "\nimport multiprocessing, os\n"
            f"with open({str(seen)!r}, 'a') as seen:\n"
            "    print(multiprocessing.current_process().name, os.environ.get('OMP_WAIT_POLICY'), sep='|', file=seen)\n"
        )
    bench.run(Filters(methods=[f"{method}:Mine"]), schedule=Schedule())
    policies = dict(line.split("|") for line in seen.read_text().splitlines())
    in_timing = {policy for name, policy in policies.items() if name.startswith("timing")}
    assert in_timing == {str(before.get("OMP_WAIT_POLICY"))}
    in_cell = {policy for name, policy in policies.items() if name.startswith("toy")}
    assert in_cell == {before.get("OMP_WAIT_POLICY", "PASSIVE")}
    assert dict(os.environ) == before


@pytest.mark.usefixtures("untimed")
def test_code_that_changes_during_the_run_is_noticed(bench):
    method = write_method(bench.folder, "open(__file__, 'a').write('VALUE = 1\\n')")
    entries = [
        {"method": f"{method}:Mine", "label": label, "recipe": {"frozen_steps": steps}}
        for steps, label in enumerate(("first", "second"))
    ]
    outcome = bench.run(changes={"methods": entries}, schedule=Schedule())
    (line,) = outcome.failed
    assert "second" in line
    assert (
        "changed since the run began, run it again: the file of Mine has changed, or a method that it derives from"
        in line
    )


@pytest.mark.usefixtures("untimed")
def test_every_unusable_record_is_named_and_the_rest_unharmed(finished):
    bench = finished
    method = write_method(bench.out, "pass")
    filters = Filters(methods=["full", "oracle", "calm-softmax", f"{method}:Mine", "static"])
    assert bench.run(filters).finished == 5
    places = {label: bench.folder_of(label) / RECORD_FILE for label in bench.records()}
    kept = {path: path.stat().st_mtime_ns for path in places["static"].parent.iterdir()}
    scores = bench.results()
    os.truncate(places["full"], 200)
    spoil(places["oracle"], "{", '{"surprise": 1,')
    spoil(places["calm-softmax"], '"schema_version": 1', '"schema_version": 0')
    write_method(bench.out, "print('changed')")
    outcome = bench.run(filters)
    assert (outcome.finished, outcome.computed, outcome.failed) == (5, 4, ())
    for label, reason in {
        "full": "is damaged (Invalid JSON",
        "oracle": "is damaged (surprise: Extra inputs are not permitted",
        "calm-softmax": "is damaged (schema version 0, this version reads 1",
        "Mine": "is stale (the file of Mine has changed, or a method that it derives from)",
    }.items():
        assert f"{places[label]} {reason}" in bench.said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert bench.results() == scores
    assert len(list(bench.out.glob("cells/*/*/*/*/seed0.*-1"))) == 4


def test_damaged_model_is_made_again_for_the_timing(finished):
    bench = finished
    key = bench.records()["full"].key
    weights = bench.out / "artifacts" / "models" / key / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    next(bench.out.rglob(TIMING_FILE)).unlink()
    outcome = bench.run()
    assert (outcome.computed, outcome.failed) == (1, ())
    assert len(bench.read().timings) == 1
