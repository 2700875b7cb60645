"""The plan of a run and its time estimate."""

from collections.abc import Callable
from pathlib import Path

import pytest
from generation_by_hand import write_generation
from records_by_hand import cell, operating_point
from small_suite import Bench

from benchmarks.run import cell as cells
from benchmarks.run.dry_run import estimate_training, plan_lines
from benchmarks.specs.base import CellSpec
from benchmarks.specs.suites import load_suite
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE
from benchmarks.store.records import CellRecord
from consistentee.errors import UserError


def spec_of(label: str) -> CellSpec:
    values = {"task": "rte", "backbone": "b", "method": label, "label": label, "parameters": {}, "seed": 0}
    values |= {"recipe": {"epochs": 2}, "validation_rows": None, "test_rows": None, "budgets": (0.5,)}
    return CellSpec.model_validate(values | {"bootstrap_resamples": 100})


def recorded(label: str, seconds: float, task: str = "rte", epochs: int = 2, rows: int = 20) -> CellRecord:
    record = cell(label, [operating_point(2.0, "budget 0.50", 2.5, 0.9)])
    parts = record.key_parts.model_copy(update={"settings": {"method": label, "recipe": {"epochs": epochs}}})
    changes = {"task": task, "backbone": "b", "train_seconds": seconds, "train_rows": rows, "key_parts": parts}
    return record.model_copy(update=changes)


@pytest.mark.parametrize(
    ("records", "seconds", "source"),
    [
        ([recorded("pabee", 30.0), recorded("pabee", 40.0), recorded("full", 9.0)], 35.0, "other seeds"),
        ([recorded("pabee", 100.0, task="mrpc", epochs=1, rows=100)], 40.0, "the same method on other tasks"),
    ],
)
def test_estimate_uses_the_most_similar_records(records, seconds, source):
    estimate = estimate_training(spec_of("pabee"), "rte", 20, records)
    assert estimate.seconds == pytest.approx(seconds)
    assert source in estimate.source


def test_no_estimate_without_a_similar_record():
    other = recorded("pabee", 9.0).model_copy(update={"backbone": "another"})
    assert estimate_training(spec_of("pabee"), "rte", 20, [recorded("full", 9.0), other]) is None


@pytest.mark.usefixtures("untimed", "unreported")
def test_plan_names_every_state_trains_nothing_and_changes_nothing(
    tmp_path: Path, tiny_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    suite = load_suite(bench.write(methods=["full", "majority"]))
    with monkeypatch.context() as patched:
        patched.setattr(cells, "trained", lambda *_, **__: pytest.fail("a dry run trains nothing"))
        lines = plan_lines(suite, out=bench.out)
    assert not bench.out.exists()
    assert sum(line.startswith("to run ") for line in lines) == 2
    assert any("training: no estimate" in line for line in lines)
    bench.run(changes={"methods": ["full"]})
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")}
    lines = plan_lines(suite, out=bench.out)
    assert any(line.startswith("done ") and "full" in line for line in lines)
    assert any(line.startswith("to run ") and "majority" in line for line in lines)
    assert any(line.startswith("to time ") for line in lines)
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")} == before
    (bench.folder_of("full") / RECORD_FILE).write_text("{")
    lines = plan_lines(suite, out=bench.out)
    assert "is damaged" in lines[0]
    assert "would be set aside" in lines[0]
    assert not list(bench.out.rglob("*.damaged-*"))
    assert not list(bench.out.rglob(FAILURE_FILE))


@pytest.mark.usefixtures("untimed", "unreported")
def test_estimate_of_another_seed(tmp_path: Path, tiny_backbone: Callable[[str], Path]):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    bench.run(changes={"methods": ["full"]})
    suite = load_suite(bench.write(methods=["full", "majority"], seeds=[0, 1]))
    (line,) = [line for line in plan_lines(suite, out=bench.out, workers=2) if line.startswith("training:")]
    assert "with 2 workers" in line
    assert "1 from the same cell with other seeds" in line
    assert "2 at the mean of the others" in line


def test_plan_refuses_results_of_another_kind(tmp_path):
    write_generation(tmp_path)
    with pytest.raises(UserError, match="holds results of generation, suite 'quick' is classification"):
        plan_lines(load_suite("quick"), out=tmp_path)
