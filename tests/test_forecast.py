"""The plan of a run and its time estimate."""

from collections.abc import Callable
from pathlib import Path

import pytest
from generation_by_hand import write_generation
from records_by_hand import cell, operating_point, parts_by_hand
from small_suite import Bench

from benchmarks.run.forecast import Forecast, plan_lines
from benchmarks.run.plan import PlannedCell
from benchmarks.specs.base import CellSpec
from benchmarks.specs.suites import load_suite
from benchmarks.store.folders import FAILURE_FILE, RECORD_FILE
from consistentee.errors import UserError


def spec_of(label: str, task: str = "rte", seed: int = 0, epochs: int = 2) -> CellSpec:
    values = {"task": task, "backbone": "b", "method": label, "label": label, "parameters": {}, "seed": seed}
    values |= {"recipe": {"epochs": epochs}, "validation_rows": None, "test_rows": None, "budgets": (0.5,)}
    return CellSpec.model_validate(values | {"bootstrap_resamples": 100})


def done(spec: CellSpec, seconds: float) -> PlannedCell:
    record = cell(spec.label, [operating_point(2.0, "budget 0.50", 2.5, 0.9)])
    return PlannedCell(spec, parts_by_hand(), record.model_copy(update={"train_seconds": seconds}))


@pytest.mark.parametrize(
    ("finished", "seconds", "source"),
    [
        ([done(spec_of("pabee", seed=1), 30.0), done(spec_of("full"), 9.0)], 30.0, "other seeds"),
        ([done(spec_of("pabee", task="mrpc", epochs=1), 100.0)], 40.0, "the same method on other tasks"),
        ([done(spec_of("full"), 9.0)], 10.0, "measured just now"),
        ([], 10.0, "measured just now"),
    ],
)
def test_estimate_takes_the_nearest_that_is_known(finished, seconds, source):
    rows = {"rte": 20, "mrpc": 100}
    forecast = Forecast(finished, lambda spec: rows[spec.task], lambda spec: 0.25)
    estimate = forecast.estimate(spec_of("pabee"))
    assert estimate.seconds == pytest.approx(seconds)
    assert source in estimate.source


def test_plan_names_every_state_and_changes_nothing(tmp_path: Path, tiny_backbone: Callable[[str], Path]):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    suite = load_suite(bench.write(methods=["full", "majority"]))
    assert not bench.out.exists()
    lines = plan_lines(suite, out=bench.out)
    assert not bench.out.exists()
    assert sum(line.startswith("to run ") for line in lines) == 2
    assert any("rate measured just now" in line for line in lines)
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


def test_plan_refuses_results_of_another_kind(tmp_path):
    write_generation(tmp_path)
    with pytest.raises(UserError, match="holds results of generation, suite 'quick' is classification"):
        plan_lines(load_suite("quick"), out=tmp_path)
