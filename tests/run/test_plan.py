"""The plan of a run: the state of every cell, the parts of its key, and an estimate of the time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from records_by_hand import cell, operating_point
from small_suite import Bench

from benchmarks.run import cell as cells
from benchmarks.run.dry_run import estimate_training
from benchmarks.run.plan import Inputs
from benchmarks.run.pool import Schedule
from benchmarks.specs.base import CellSpec
from benchmarks.specs.suites import expand, load_suite
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE
from benchmarks.store.hashes import FileHashes
from benchmarks.store.keys import differences
from benchmarks.store.records import CellRecord, KeyParts


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
    changes = {"methods": ["full", "majority"]}
    with monkeypatch.context() as patched:
        patched.setattr(cells, "trained", lambda *_, **__: pytest.fail("a dry run trains nothing"))
        lines = bench.plan(changes=changes)
    assert not bench.out.exists()
    assert sum(line.startswith("to run ") for line in lines) == 2
    assert any("training: no estimate" in line for line in lines)
    bench.run(changes={"methods": ["full"]})
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")}
    lines = bench.plan(changes=changes)
    assert any(line.startswith("done ") and "full" in line for line in lines)
    assert any(line.startswith("to run ") and "majority" in line for line in lines)
    assert any(line.startswith("to time ") for line in lines)
    estimates = bench.plan(changes={**changes, "seeds": [0, 1]}, schedule=Schedule(2))
    (line,) = [line for line in estimates if line.startswith("training:")]
    for part in ("with 2 workers", "1 from the same cell with other seeds", "2 at the mean of the others"):
        assert part in line
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")} == before
    (bench.folder_of("full") / RECORD_FILE).write_text("{")
    lines = bench.plan(changes=changes)
    assert "is damaged" in lines[0]
    assert "would be set aside" in lines[0]
    assert not list(bench.out.rglob("*.damaged-*"))
    assert not list(bench.out.rglob(FAILURE_FILE))


def test_the_files_of_a_backbone_in_a_parameter_count(tmp_path, tiny_backbone):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    companion = tmp_path / "companion"
    shutil.copytree(tiny_backbone("bert"), companion)

    def parts(weights: str) -> KeyParts:
        (companion / "model.safetensors").write_text(weights)
        entry = {"method": "cascade-bert", "parameters": {"companion_backbone": str(companion)}}
        (spec,) = expand(load_suite(bench.write(methods=[entry])))
        return Inputs(None, FileHashes(Path("nowhere"))).parts(spec)

    assert parts("first") == parts("first")
    assert differences(parts("first"), parts("second")) == [
        "the backbone is another (companion_backbone.files.model.safetensors)"
    ]
