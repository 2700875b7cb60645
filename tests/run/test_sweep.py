"""A run of a suite: finished cells are kept, missing ones are computed, and no end of a run leaves one half-done."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import small_suite
from small_suite import Bench, stamps, wait_until, write_task

from benchmarks.run import cell as cells, timing
from benchmarks.run.pool import Schedule
from benchmarks.specs.method_files import method_version
from benchmarks.specs.suites import Filters
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE, TIMING_FILE
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


def write_method(folder: Path, statement: str) -> str:
    """Write a method that does something before it trains, and let its code be read again."""
    (folder / "mine.py").write_text(METHOD.format(statement=statement))
    method_version.cache_clear()
    return f"{folder / 'mine.py'}:Mine"


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def finished(finished_suite: Bench, tmp_path: Path, unreported: None) -> Bench:
    """A bench whose suite has run: a copy of its results, so that every test may spoil them."""
    return finished_suite.elsewhere(shutil.copytree(finished_suite.out, tmp_path / "out"))


def test_a_run_writes_cells_times_and_tables(finished_suite):
    finished_suite.assert_complete(cells=3)
    assert finished_suite.timed_labels() == [{"stock model", "full", "calm-softmax"}]
    found = finished_suite.read()
    (timing,) = found.timings.values()
    layers = {one.label: one.average_layers for one in timing.timed}
    assert (layers["stock model"], layers["full"]) == (4.0, 4.0)
    times = found.frame("times")
    counts = times.groupby(["timed", "batch_size"])[["round", "batch"]].nunique()
    assert counts.to_dict("index") == {
        (timed, size): {"round": 3, "batch": 8 // size} for timed in range(len(timing.timed)) for size in (1, 4)
    }
    assert (times["units"] == times["batch_size"]).all()
    assert (times["seconds"] > 0).all()


def test_times_may_be_left_to_a_later_run(bench):
    changes = {"methods": ["full", "majority"]}
    outcome = bench.run(changes=changes, times=False)
    assert (outcome.finished, outcome.computed, outcome.failed) == (2, 2, ())
    assert bench.timed_labels() == []
    assert not [line for line in bench.plan(changes=changes, times=False) if line.startswith("to time")]
    changes["methods"].append("static")
    outcome = bench.run(changes=changes, train=False)
    assert (outcome.finished, outcome.computed, set(bench.records())) == (2, 0, {"full", "majority"})
    assert bench.timed_labels() == [{"stock model", "full", "majority"}]
    with pytest.raises(UserError, match="nothing to do"):
        bench.run(changes=changes, train=False, times=False)


def test_a_suite_may_have_no_times_or_those_of_one_round(bench):
    changes = {"methods": ["full", "static"], "timing": {"rounds": 0}}
    assert bench.run(changes=changes).computed == 2
    assert bench.timed_labels() == []
    assert not [line for line in bench.plan(changes=changes) if line.startswith(("to time", "timing"))]
    with pytest.raises(UserError, match="nothing to do"):
        bench.run(changes=changes, train=False)
    changes["timing"] = {"rounds": 1, "rows": 4, "batch_sizes": [1], "warmup_batches": 0}
    bench.run(changes=changes, train=False)
    assert bench.read().frame("times")["round"].unique().tolist() == [0]


def test_an_up_to_date_run_writes_nothing_and_does_not_load_torch(finished):
    before = stamps(finished.out.rglob("*.json"))
    code = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.specs.suites import load_suite\nfrom benchmarks.run.sweep import run_suite\n"
        f"outcome = run_suite(load_suite({str(finished.suite_file)!r}), out=Path({str(finished.out)!r}))\n"
        "assert (outcome.finished, outcome.computed) == (3, 0)\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert stamps(finished.out.rglob("*.json")) == before


def test_filtered_runs_add_up_and_keep_each_others_times(finished):
    finished.run(Filters(methods=["pabee"]))
    assert set(finished.records()) == {"full", "oracle", "calm-softmax", "pabee"}
    assert finished.timed_labels() == [{"stock model", "full", "calm-softmax", "pabee"}]
    before = stamps(finished.out.rglob(TIMING_FILE))
    assert finished.run(Filters(methods=["full"])).computed == 0
    assert stamps(finished.out.rglob(TIMING_FILE)) == before


def test_times_that_cannot_be_taken_again_are_kept(finished):
    shutil.rmtree(finished.out / "artifacts" / "models")
    finished.run(Filters(methods=["pabee"]))
    (kept,) = finished.out.rglob("timing-1.json")
    assert "is kept as timing-1.json" in finished.said
    assert "calm-softmax" in kept.read_text()
    assert finished.run(changes={"methods": ["full", "oracle", "calm-softmax", "pabee"]}).computed == 0
    assert finished.timed_labels() == [{"stock model", "pabee"}, {"stock model", "full", "calm-softmax"}]


@pytest.mark.usefixtures("untimed")
def test_a_label_with_other_parameters_is_no_second_curve(finished):
    def changes(classifier: str) -> dict[str, object]:
        entry = {"method": "deebert", "label": "mine", "recipe": {"frozen_steps": 2}}
        return {"methods": [{**entry, "parameters": {"classifier": classifier}}]}

    finished.run(changes=changes("linear"))
    assert "other parameters under this label): it would be set aside" in finished.plan(changes=changes("mlp"))[0]
    finished.run(changes=changes("mlp"))
    assert finished.said.count("other parameters under this label") == 1
    found = [record for record in finished.read().cells.values() if record.label == "mine"]
    assert [record.parameters["classifier"] for record in found] == ["mlp"]


@pytest.mark.usefixtures("untimed")
def test_cells_of_another_recipe_are_set_aside_whichever_methods_are_run(finished):
    labels = set(finished.records())
    finished.run(Filters(methods=["full"]), changes={"recipe": {"frozen_steps": 1}})
    assert set(finished.records()) == {"full"}
    assert finished.said.count("is stale (recipe.") == len(labels)


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 200)


@pytest.mark.parametrize("lose", [shutil.rmtree, cut_weights])
def test_a_lost_model_is_named_if_a_timing_needs_it_and_trained_again_by_fresh(finished, lose):
    lose(finished.out / "artifacts" / "models" / finished.records()["full"].key)
    assert finished.run().computed == 0
    assert "not timed" not in finished.said
    next(finished.out.rglob(TIMING_FILE)).unlink()
    assert any("full: not timed" in line for line in finished.plan())
    assert finished.run().computed == 0
    assert "full: not timed, because their trained models are damaged or gone" in finished.said
    assert finished.timed_labels() == [{"stock model", "calm-softmax"}]
    assert finished.run(Filters(methods=["full"]), fresh=True).computed == 1
    assert finished.timed_labels() == [{"stock model", "full", "calm-softmax"}]


def test_times_at_other_knobs_stand_where_the_model_is_gone(finished, monkeypatch):
    chosen = timing.knobs_to_time

    def moved(cells):
        return {key: [-1.0] if knobs else [] for key, knobs in chosen(cells).items()}

    monkeypatch.setattr(timing, "knobs_to_time", moved)
    assert any(line.startswith("to time") for line in finished.plan())
    shutil.rmtree(finished.out / "artifacts" / "models")
    assert not any(line.startswith("to time") for line in finished.plan())
    assert finished.run().computed == 0
    assert "not timed" not in finished.said


@pytest.mark.usefixtures("untimed")
def test_a_failed_cell_is_noted_and_the_run_goes_on(bench):
    method = write_method(bench.folder, "raise RuntimeError('the flux is not capacitated')")
    filters = Filters(methods=[method, "full"])
    outcome = bench.run(filters)
    assert outcome.finished == 1
    (line,) = outcome.failed
    assert re.search(r"Mine.*RuntimeError: the flux is not capacitated", line)
    (note,) = bench.out.rglob(FAILURE_FILE)
    assert "flux" in note.read_text()
    assert str(Path.home()) + "/" not in note.read_text()
    again = bench.run(filters)
    assert (again.computed, again.failed) == (0, (line,))
    assert "1 failed before" in bench.said
    assert bench.run(filters, retry_failed=True).computed == 1
    write_method(bench.folder, "pass")
    mended = bench.run(filters)
    assert (mended.computed, mended.failed) == (1, ())
    assert list(bench.out.rglob(FAILURE_FILE)) == []


@pytest.mark.usefixtures("untimed")
def test_a_method_that_is_not_defined_for_a_task_is_refused(bench):
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
def test_unknown_names_end_the_run_before_any_training(bench, monkeypatch, changes, message):
    monkeypatch.setattr(small_suite, "compute_here", lambda job: pytest.fail("a cell was computed"))
    with pytest.raises(UserError, match=message):
        bench.run(changes=changes)


def test_ctrl_c_of_a_fresh_run_says_that_the_same_command_begins_anew(bench, monkeypatch):
    monkeypatch.setattr("benchmarks.run.sweep._Run.complete", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="the same command begins anew; without --fresh it continues"):
        bench.run(fresh=True)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("options", [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_an_interrupted_run_keeps_finished_cells(bench, options):
    bench.write()
    process = bench.start(*options)
    wait_until(lambda: bench.finished_cells() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    assert process.wait(120) == 130
    said = (bench.folder / "said.txt").read_text()
    assert f"checkpoints are kept in {bench.out}, and the same command continues" in said
    assert bench.leftovers() == []
    done = len(bench.finished_cells())
    assert 1 <= done < 3
    assert bench.run().computed == 3 - done


@pytest.mark.usefixtures("untimed")
def test_a_full_disk_ends_the_run_and_keeps_finished_cells(bench):
    method = write_method(bench.folder, "raise OSError(28, 'No space left on device')")
    with pytest.raises(DiskFullError, match="disk full"):
        bench.run(Filters(methods=["full", method, "oracle"]), schedule=Schedule())
    assert set(bench.records()) == {"full"}
    assert bench.leftovers() == []
    assert list(bench.out.rglob(FAILURE_FILE)) == []


@pytest.mark.usefixtures("untimed")
def test_a_cell_whose_process_dies_is_a_failure_that_names_the_signal(bench):
    method = write_method(bench.folder, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    filters = Filters(methods=[method])
    (line,) = bench.run(filters, schedule=Schedule()).failed
    assert "ended by signal SIGSEGV" in line
    (note,) = bench.out.rglob(FAILURE_FILE)
    assert "mine.py" in note.read_text(), "where it died is kept"
    tries = [bench.run(filters, schedule=Schedule()).computed for _ in range(2)]
    assert tries == [1, 0], "the next run tries once more, without being asked to"
    assert bench.leftovers() == []


def test_threads_sleep_while_they_wait_in_a_cell_and_not_in_a_timing(bench):
    method, seen, before = write_method(bench.folder, "pass"), bench.folder / "seen", dict(os.environ)
    with (bench.folder / "mine.py").open("a") as file:
        file.write(
            "\nimport multiprocessing, os\n"
            f"with open({str(seen)!r}, 'a') as seen:\n"
            "    print(multiprocessing.current_process().name, os.environ.get('OMP_WAIT_POLICY'), sep='|', file=seen)\n"
        )
    bench.run(Filters(methods=[method]), schedule=Schedule())
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
        {"method": method, "label": label, "recipe": {"frozen_steps": steps}}
        for steps, label in enumerate(("first", "second"))
    ]
    (line,) = bench.run(changes={"methods": entries}, schedule=Schedule()).failed
    assert re.search("second.*changed since the run began.*the method's file changed", line)


@pytest.mark.usefixtures("untimed")
def test_every_unusable_file_is_named_and_made_again_and_the_rest_is_unharmed(finished):
    filters = Filters(methods=["full", "oracle", "calm-softmax", write_method(finished.out, "pass"), "static"])
    assert finished.run(filters).finished == 5
    places = {label: finished.folder_of(label) / RECORD_FILE for label in finished.records()}
    kept, scores = stamps(places["static"].parent.rglob("*")), finished.results()
    os.truncate(places["full"], 200)
    spoil(places["oracle"], "{", '{"surprise": 1,')
    spoil(places["calm-softmax"], '"schema_version": 2', '"schema_version": 1')
    next(finished.out.rglob(TIMING_FILE)).write_text("{")
    write_method(finished.out, "print('changed')")
    outcome = finished.run(filters)
    assert (outcome.finished, outcome.computed, outcome.failed) == (5, 4, ())
    for label, reason in {
        "full": "is damaged (Invalid JSON",
        "oracle": "is damaged (unknown key 'surprise'",
        "calm-softmax": "is damaged (schema_version: Input should be 2",
        "Mine": "is stale (the method's file changed",
    }.items():
        assert f"{places[label]} {reason}" in finished.said
    assert "timing.json is damaged" in finished.said
    assert stamps(places["static"].parent.rglob("*")) == kept
    assert finished.results() == scores
    assert len(list(finished.out.glob("cells/*/*/*/*/seed0.*-1"))) == 4


@pytest.mark.usefixtures("untimed")
def test_a_dry_run_names_every_state_trains_nothing_and_changes_nothing(bench, monkeypatch):
    changes = {"methods": ["full", "majority"]}
    with monkeypatch.context() as patched:
        patched.setattr(cells, "trained", lambda *_, **__: pytest.fail("a dry run trains nothing"))
        lines = bench.plan(changes=changes)
    assert not bench.out.exists()
    assert sum(line.startswith("to run ") for line in lines) == 2
    assert any("training: no estimate" in line for line in lines)
    in_words = bench.plan(changes={**changes, "cost": {"disk_gb_a_cell": "much"}})
    assert not any("the disk may fill up" in line for line in (*lines, *in_words))
    lines = bench.plan(changes={**changes, "cost": {"disk_gb_a_cell": 1_000_000}})
    assert any(line.startswith("the disk may fill up: about 2000000 GB are needed") for line in lines)
    bench.run(changes={"methods": ["full"]})
    before = stamps(bench.out.rglob("*"))
    lines = bench.plan(changes=changes)
    assert any(line.startswith("done ") and "full" in line for line in lines)
    assert any(line.startswith("to run ") and "majority" in line for line in lines)
    assert any(line.startswith("to time ") for line in lines)
    estimates = bench.plan(changes={**changes, "seeds": [0, 1]}, schedule=Schedule(2))
    (line,) = [line for line in estimates if line.startswith("training:")]
    assert "with 2 workers" in line
    assert line.endswith("recorded seconds of 1 of 3"), "the same method with another seed"
    assert stamps(bench.out.rglob("*")) == before
    (bench.folder_of("full") / RECORD_FILE).write_text("{")
    lines = bench.plan(changes=changes)
    assert "is damaged" in lines[0]
    assert "would be set aside" in lines[0]
    assert not list(bench.out.rglob("*.damaged-*"))
    assert not list(bench.out.rglob(FAILURE_FILE))
