"""A run of a suite of generation: what is done is kept, what is missing is computed, and everything can be shown."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_suite import GENERATION_METHODS, GenerationBench

from benchmarks.commands.publish import faults_of
from benchmarks.run.sweep import run_suite
from benchmarks.specs.suites import load_suite
from consistentee.errors import UserError


@pytest.fixture(scope="module")
def finished_once(
    tmp_path_factory: pytest.TempPathFactory, tiny_decoder_backbone: Callable[..., Path]
) -> GenerationBench:
    return GenerationBench(tmp_path_factory.mktemp("finished"), tiny_decoder_backbone("llama")).run_once()


@pytest.fixture
def finished(finished_once: GenerationBench, tmp_path: Path, unreported: None) -> GenerationBench:
    """A bench whose suite has run: a copy of its results, so that every test may spoil them."""
    return finished_once.elsewhere(shutil.copytree(finished_once.out, tmp_path / "out"))


def test_a_run_writes_cells_times_and_tables(finished_once):
    finished_once.assert_complete(cells=4)
    found = finished_once.read()
    (timing,) = found.timings.values()
    assert timing.max_new_tokens == 3
    times = found.frame("times")
    ways = times.groupby("timed")[["batch_size", "in_flight"]]
    timed = {timing.timed[number].label: {*map(tuple, way.to_numpy().tolist())} for number, way in ways}
    in_step = {(1, 1), (4, 4)}
    assert timed.pop("stock generate") == timed.pop("layerskip") == in_step, "which have their own way to decode"
    assert timed == dict.fromkeys(["token-full", "token-static", "calm-tokens-softmax"], in_step | {(1, 4)})
    assert (times["layer_calls"] >= times["units"]).all()
    assert times["head_seconds"].notna().tolist() == (times["timed"] == 0).tolist(), "of stock generate"
    assert times["completed"].map(len).tolist() == times["in_flight"].tolist()
    assert {(r.task, r.train_task) for r in finished_once.records().values()} == {("toy-text", "other-text")}


def test_the_full_model_matches_itself_and_costs_as_much(finished_once):
    (point, never) = finished_once.frames_of("token-full")["curve"].to_dict("records")
    assert point["layers"] == finished_once.records()["token-full"].num_layers == 4
    assert point["match"] == point["rougeL_to_full"] == 1.0
    assert point["flops"] == point["full_flops"] > 0
    assert point["exit_histogram"].tolist() == [0, 0, 0, point["decoded_tokens"]]
    same = ["layers", "rougeL", "rouge1", "nats", "flops", "new_tokens"]
    assert [point[name] for name in same] == [never[name] for name in same]


def test_a_static_exit_is_decoded_at_the_layers_of_its_knobs(finished_once):
    curve = finished_once.frames_of("token-static")["curve"].set_index("knob")
    assert curve["layers"].tolist() == curve["validation_layers"].tolist() == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert curve.at[1.0, "exit_histogram"].tolist() == [curve.at[1.0, "decoded_tokens"], 0, 0, 0]
    assert curve["flops"][:4].is_monotonic_increasing


def test_frames_of_every_cell_agree_with_each_other(finished_once):
    assert list(faults_of(finished_once.out)) == []
    for label, record in finished_once.records().items():
        rows = finished_once.frames_of(label)["rows"]
        assert rows["truncated"].sum() == record.truncated_prompts > 0
        assert rows["prompt_tokens"].max() == record.max_prompt_tokens == 3


def test_changed_settings_and_rows_make_results_stale(finished):
    assert sum(line.startswith("done") for line in finished.plan()) == len(GENERATION_METHODS)
    changed = finished.plan(changes={"max_new_tokens": 4})
    assert sum(line.startswith("to run") for line in changed) == len(GENERATION_METHODS)
    data = next(finished.folder.glob("toy-text-test.jsonl"))
    text = data.read_text()
    try:
        data.write_text(text.replace("ba", "be"))
        lines = finished.plan()
    finally:
        data.write_text(text)
    assert sum("is stale (the rows of the task changed)" in line for line in lines) == len(GENERATION_METHODS)


def test_a_suite_of_the_other_kind_keeps_out_of_the_folder(finished):
    for dry_run in (False, True):
        with pytest.raises(UserError, match="holds results of generation, suite 'quick' is classification"):
            run_suite(load_suite("quick"), out=finished.out, dry_run=dry_run)
