"""A run of a suite of generation: what is done is kept, what is missing is computed, and everything can be shown."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_generation_suite import METHODS, GenerationBench
from small_suite import wait_until

from benchmarks.commands.verify import faults_of
from benchmarks.run.sweep import run_suite
from benchmarks.specs.suites import load_suite
from benchmarks.store.folders import RECORD_FILE
from consistentee.errors import UserError


@pytest.fixture(scope="module")
def finished_once(
    tmp_path_factory: pytest.TempPathFactory, tiny_decoder_backbone: Callable[..., Path]
) -> GenerationBench:
    bench = GenerationBench(tmp_path_factory.mktemp("finished"), tiny_decoder_backbone("llama"))
    bench.outcome = bench.run()
    return bench


@pytest.fixture
def finished(finished_once: GenerationBench, tmp_path: Path, unreported: None) -> GenerationBench:
    """A bench whose suite has run: a copy of its results, so that every test may spoil them."""
    return finished_once.elsewhere(shutil.copytree(finished_once.out, tmp_path / "out"))


def test_whole_run(finished_once):
    bench, outcome = finished_once, finished_once.outcome
    assert (outcome.finished, outcome.computed, outcome.failed, outcome.refused) == (4, 4, (), ())
    written = {path.name for path in bench.out.iterdir()}
    assert {"table.md", "suite.yaml", "environment.json"} <= written
    assert any(name.endswith(".png") for name in written)
    found = bench.read()
    (timing,), faults = found.timings.values(), found.faults
    assert faults == []
    assert timing.max_new_tokens == 3
    assert len(bench.records()["token-static"].losses["exits"]) > 1
    timed = {one.label: [(sample.batch_size, sample.in_flight) for sample in one.samples] for one in timing.contenders}
    assert next(iter(timed)) == "stock generate"
    assert set(timed) == {"stock generate", *METHODS}
    assert timed["stock generate"] == timed["layerskip"] == [(1, None), (4, None)], "which have their own way to decode"
    assert timed["token-static"] == [(1, None), (4, None), (1, 4)]
    assert all(sample.layer_calls for one in timing.contenders for sample in one.samples)
    assert {(r.task, r.train_task) for r in bench.records().values()} == {("toy-text", "other-text")}
    assert str(bench.folder) not in "".join(path.read_text() for path in bench.out.rglob(RECORD_FILE))
    assert bench.leftovers() == []


def test_full_model_is_matched_and_priced_as_itself(finished_once):
    record = finished_once.records()["token-full"]
    (point,) = record.operating_points
    assert point.average_layers == record.num_layers == 4
    assert point.token_match.value == point.full_text_score.value == 1.0
    assert point.decode_flops == point.full_decode_flops > 0
    assert point.scores == record.full_scores
    assert point.exit_histogram == [0, 0, 0, point.decoded_tokens]


def test_static_points_are_decoded_where_the_budget_says(finished_once):
    record = finished_once.records()["token-static"]
    by_reason = {reason: point for point in record.operating_points for reason in map(str, point.targets)}
    cheapest = by_reason["budget 0.33"]
    assert cheapest.average_layers == 1.0
    assert by_reason["budget 0.50"].average_layers <= 2.0
    assert cheapest.exit_histogram == [cheapest.decoded_tokens, 0, 0, 0]
    assert set(cheapest.layers_by_position) == {1.0}
    assert cheapest.decode_flops < cheapest.full_decode_flops


def test_rows_bear_the_records_out(finished_once):
    assert list(faults_of(finished_once.out)) == []
    for cell in finished_once.read().cells:
        record, table = cell.record, cell.predictions()
        assert table["truncated"].sum() == record.truncated_prompts > 0
        assert table["prompt_tokens"].max() == record.max_prompt_tokens == 3


def test_changed_settings_and_rows_make_results_stale(finished):
    assert sum(line.startswith("done") for line in finished.plan()) == len(METHODS)
    changed = finished.plan(changes={"max_new_tokens": 4})
    assert sum(line.startswith("to run") for line in changed) == len(METHODS)
    data = next(finished.folder.glob("toy-text-test.jsonl"))
    text = data.read_text()
    try:
        data.write_text(text.replace("ba", "be"))
        lines = finished.plan()
    finally:
        data.write_text(text)
    assert sum("is stale (the rows of the task changed)" in line for line in lines) == len(METHODS)


@pytest.fixture
def bench(tmp_path: Path, tiny_decoder_backbone: Callable[..., Path], unreported: None) -> GenerationBench:
    return GenerationBench(tmp_path, tiny_decoder_backbone("llama"))


@pytest.mark.slow  # test_kill.py kills a run of classification by default
@pytest.mark.usefixtures("untimed")
def test_killed_run_goes_on_to_the_same_results(bench, finished_once):
    bench.write()
    process = bench.start()
    wait_until(lambda: bench.finished_cells() or process.poll() is not None)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(bench.finished_cells())
    outcome = bench.run()
    assert (outcome.finished, outcome.computed) == (4, 4 - done)
    assert bench.results() == finished_once.results()
    assert bench.leftovers() == []


def test_suite_of_the_other_kind_keeps_out_of_the_folder(finished):
    for dry_run in (False, True):
        with pytest.raises(UserError, match="holds results of generation, suite 'quick' is classification"):
            run_suite(load_suite("quick"), out=finished.out, dry_run=dry_run)
