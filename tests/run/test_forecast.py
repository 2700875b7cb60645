"""The plan of a run and its time estimate."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from generation_by_hand import write_generation
from records_by_hand import cell, operating_point, parts_by_hand
from small_generation_suite import GenerationBench
from small_suite import Bench

from benchmarks.run.planning import rehearsal
from benchmarks.run.planning.forecast import Forecast, plan_lines
from benchmarks.run.planning.plan import Inputs, PlannedCell
from benchmarks.run.planning.rehearsal import Rehearsal
from benchmarks.specs.base import BaseCellSpec, BaseSuite, CellSpec
from benchmarks.specs.suites import expand, load_suite
from benchmarks.store.file_hashes import FileHashes
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
        ([done(spec_of("full"), 9.0)], 10.0, "a rehearsal just now"),
        ([], 10.0, "a rehearsal just now"),
    ],
)
def test_estimate_takes_the_nearest_that_is_known(finished, seconds, source):
    rows = {"rte": 20, "mrpc": 100}
    forecast = Forecast(finished, lambda spec: rows[spec.task], lambda spec: 10.0)
    estimate = forecast.estimate(spec_of("pabee"))
    assert estimate.seconds == pytest.approx(seconds)
    assert source in estimate.source


@pytest.mark.usefixtures("untimed", "unreported")
def test_plan_names_every_state_and_changes_nothing(tmp_path: Path, tiny_backbone: Callable[[str], Path]):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    suite = load_suite(bench.write(methods=["full", "majority"]))
    assert not bench.out.exists()
    lines = plan_lines(suite, out=bench.out)
    assert not bench.out.exists()
    assert sum(line.startswith("to run ") for line in lines) == 2
    assert any("from a rehearsal just now" in line and "measuring" in line for line in lines)
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


def cells_of(suite: BaseSuite, **options: float) -> tuple[Rehearsal, dict[str, BaseCellSpec]]:
    inputs = Inputs(None, FileHashes(Path("nowhere")))
    return Rehearsal(inputs.rows, suite.timing, **options), {spec.label: spec for spec in expand(suite)}


@pytest.fixture
def steps(monkeypatch):
    """Let every step of a stage take a second, but those of heads, which take a tenth."""
    seen = []

    def seconds(model, source, stage, recipe):
        seen.append(stage.name)
        return 1.0 if any(name.startswith("backbone") for name in stage.trains) else 0.1

    monkeypatch.setattr(rehearsal, "seconds_of_a_step", seconds)
    return seen


def test_a_rehearsal_counts_the_steps_that_stages_declare(tmp_path, tiny_backbone, steps, monkeypatch):
    monkeypatch.setattr(rehearsal, "listening", lambda _: nullcontext())
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(perf_counter=lambda: 0.0, monotonic=time.monotonic))
    bench = Bench(tmp_path, tiny_backbone("bert"))
    changes = {"recipe": {"epochs": 3, "batch_size": 10, "frozen_steps": 40, "frozen_batch_size": 32}}
    suite = load_suite(bench.write(methods=["full", "pabee", "static", "deebert", "majority"], **changes))
    rehearsed, specs = cells_of(suite)
    rows = len(Inputs(None, FileHashes(Path("nowhere"))).rows(specs["full"]).training.train)
    epochs = 3 * -(-rows // 10)
    took = {label: rehearsed.training(spec) for label, spec in specs.items()}
    assert took["full"] == took["pabee"] == epochs
    assert took["static"] == 0  # the stage that it shares with pabee is paid for
    assert took["deebert"] == pytest.approx(4.0)  # heads on top of the full model
    assert took["majority"] == 0
    assert len(steps) == len(set(steps)) == 3


def test_a_rehearsal_of_decoders(tmp_path, tiny_decoder_backbone, steps):
    bench = GenerationBench(tmp_path, tiny_decoder_backbone())
    suite = load_suite(bench.write())
    rehearsed, specs = cells_of(suite)
    took = [rehearsed.training(spec) for spec in specs.values() if spec.label != "token-full"]
    assert took[0] >= suite.recipe.exit_steps * 0.1
    assert steps.count("exits") == 1
    besides = rehearsed.besides(next(iter(specs.values())))
    assert min(besides) > 0


def test_nothing_is_rehearsed_when_time_is_up_or_a_method_fails(tmp_path, tiny_backbone, monkeypatch):
    suite = load_suite(Bench(tmp_path, tiny_backbone("bert")).write(methods=["full"]))
    late, specs = cells_of(suite, seconds=-1)
    assert late.training(specs["full"]) is None
    monkeypatch.setattr(rehearsal, "train_method", lambda *_: 1 / 0)
    broken, _ = cells_of(suite)
    assert broken.training(specs["full"]) is None
    assert "no time estimate" in plan_lines(suite, out=tmp_path / "new")[-2]


def test_plan_refuses_results_of_another_kind(tmp_path):
    write_generation(tmp_path)
    with pytest.raises(UserError, match="holds results of generation, suite 'quick' is classification"):
        plan_lines(load_suite("quick"), out=tmp_path)
