"""One cell: live runs agree with replays, frames with each other, and a cell that is not finished is none."""

from unittest.mock import Mock

import pandas as pd
import pytest
from records_by_hand import cell_spec, parts_by_hand

from baselines.references import Static
from benchmarks.commands.publish import faults_of
from benchmarks.kinds.classification import Classification
from benchmarks.kinds.kind import CellRows
from benchmarks.run.cell import live_differences, reached, run_cell
from benchmarks.specs.base import CellSpec, Regrouped, TimingSpec
from benchmarks.store.folders import LOG_FILE, RunFolder, read_cell
from benchmarks.store.frames import read_frame
from benchmarks.store.records import AnyRecord
from benchmarks.testing.tiny import make_task, random_texts
from consistentee import MultiExitModel, TaskData, UserError
from consistentee.progress import listening
from consistentee.training.recipe import RecipeSettings

LAYERS = 4
TASK = make_task()


def spec_of(backbone: object, method: str, **changes: object) -> CellSpec:
    recipe = RecipeSettings(epochs=1, max_length=16)
    return cell_spec(task="toy", backbone=str(backbone), method=method, label=method, recipe=recipe, **changes)


def run(spec: CellSpec, task: TaskData, folder: RunFolder) -> tuple[AnyRecord, dict[str, pd.DataFrame]]:
    """Run a cell, and return its record and its frames as they are on disk."""
    written = run_cell(spec, parts_by_hand(), CellRows(task, task), folder, command="")
    record, fault = read_cell(folder.cell(spec), parts_by_hand())
    assert (record, fault) == (written, None)
    return written, {path.stem: read_frame(path) for path in folder.cell(spec).glob("*.parquet")}


@pytest.mark.parametrize("method", ["full", "calm-softmax", "oracle", "hashee"])
def test_frames_of_a_cell_agree_with_each_other(tmp_path, tiny_backbone, method):
    spec, folder = spec_of(tiny_backbone("bert"), method), RunFolder(tmp_path)
    record, frames = run(spec, TASK, folder)
    place, curve = folder.cell(spec), frames["curve"]
    assert [fault for fault in faults_of(tmp_path) if str(place) in fault] == [], "scores and exits of its rows"
    assert frames["rows"]["label"].tolist() == list(TASK.test.labels)
    assert frames["answers"].groupby("layer")["row"].agg(list).tolist() == [list(range(len(TASK.test)))] * LAYERS
    mixed = curve.set_index("place").loc[frames["exits"]["place"].unique()]
    assert (mixed["flops"] > 0).all()
    if method == "oracle":
        assert not {"live_rows", "live_disagreements"} & set(curve)
    else:
        assert (mixed["live_rows"] == len(TASK.test)).all()
        assert (mixed["live_disagreements"] == 0).all()
    assert curve["knob"].isna().tolist() == [False] * (len(curve) - 1) + [True], "never exit comes last"
    if method == "full":
        assert mixed["flops"].tolist() == [curve["full_flops"][0]]
    if method == "hashee":
        assert (mixed["flops"] < curve["full_flops"][0]).all()
        assert mixed["layers"].between(1, 4, inclusive="neither").all()
    training = frames["training"]
    assert training["step"].between(1, 50).all()
    assert set(training["stage"]) == set(training.query("curve == 'loss'")["stage"])
    assert "trained in" in (place / LOG_FILE).read_text()
    saved = MultiExitModel.from_pretrained(folder.model(record.key).absolute()).description
    assert (saved.method_name, saved.task_name, saved.max_length) == (method, "toy", 16)
    assert saved.default_knob in curve["knob"].tolist()


def test_a_cascade_counts_its_own_layers_against_the_stock_models(tmp_path, tiny_backbone):
    spec = spec_of(tiny_backbone("bert"), "cascade-bert", parameters={"companion_layers": 2})
    record, frames = run(spec, TASK, RunFolder(tmp_path))
    losses = frames["training"].query("curve == 'loss'")["stage"].unique()
    assert list(losses) == ["last-exit", *(f"last-exit ({fold})" for fold in (2, 3, 4)), "companion"]
    assert record.num_layers == LAYERS
    histograms = frames["curve"]["exit_histogram"].tolist()
    assert {len(counts) for counts in histograms} == {LAYERS + 2}
    assert all(sum(counts) == counts[1] + counts[-1] for counts in histograms)
    assert frames["curve"]["layers"].min() <= LAYERS / 2
    assert not frames["curve"]["live_disagreements"].any()


def test_a_finished_cell_is_described_by_points_and_score_at_the_middle_budget(tmp_path, tiny_backbone):
    with listening(listener := Mock()):
        record, frames = run(spec_of(tiny_backbone("bert"), "static"), TASK, RunFolder(tmp_path))
    scores = 100 * (curve := frames["curve"])["accuracy"]
    assert listener.call_args.args[0].done == curve["live_rows"].count() > 1, "each live run is a step of the progress"
    assert reached(record, curve, None) == f"accuracy {scores[1]:.1f} at 2x"
    assert reached(record, curve, curve["accuracy"].iloc[-1]).startswith(f"{scores[1] - scores.iloc[-1]:+.1f} points, ")
    assert reached(record, curve[2:].reset_index(), None) == f"accuracy {scores[2]:.1f} at 3.00 of 4 layers"
    assert live_differences(curve) == []
    (line,) = live_differences(curve.assign(live_disagreements=[0, 2, 0, 0, 0]))
    assert line == f"2 of {len(TASK.test)} rows differ live at knob 2"


def test_a_shorter_model_counts_its_own_layers_and_is_compared_with_the_stock_model(tmp_path, tiny_backbone):
    full, full_frames = run(spec_of(tiny_backbone("bert"), "full"), TASK, RunFolder(tmp_path / "full"))
    spec, folder = spec_of(tiny_backbone("bert"), "cut", parameters={"depth": 2}), RunFolder(tmp_path / "cut")
    record, frames = run(spec, TASK, folder)
    assert [fault for fault in faults_of(folder.root) if str(folder.cell(spec)) in fault] == []
    assert record.num_layers == LAYERS
    assert record.trained_rows == full.trained_rows / 2
    point = frames["curve"].iloc[0]
    assert point["full_flops"] == full_frames["curve"]["full_flops"][0]
    assert (point["knob"], point["layers"], point["live_disagreements"]) == (2, 2, 0)
    assert point["flops"] < 0.55 * point["full_flops"]


@pytest.mark.parametrize("last", ["save_pretrained", "to_parquet"])
def test_a_cell_that_dies_while_it_is_computed_again_is_not_finished(tmp_path, tiny_backbone, monkeypatch, last):
    spec, folder = spec_of(tiny_backbone("bert"), "full"), RunFolder(tmp_path)
    run(spec, TASK, folder)
    owner = {"save_pretrained": MultiExitModel, "to_parquet": pd.DataFrame}[last]
    monkeypatch.setattr(owner, last, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(spec, TASK, folder)
    assert read_cell(folder.cell(spec), parts_by_hand()) == (None, None)


def test_a_regression_is_scored_by_correlation(tmp_path, tiny_backbone):
    record, frames = run(spec_of(tiny_backbone("bert"), "pabee"), make_task(regression=True), RunFolder(tmp_path))
    assert record.metric == "pearson"
    assert not frames["curve"]["live_disagreements"].any()
    assert frames["curve"]["pearson_terms"].map(len).tolist() == [5] * len(frames["curve"])
    assert "pearson" in reached(record, frames["curve"], None)
    with pytest.raises(UserError, match="deebert is not defined for a regression"):
        run(spec_of(tiny_backbone("bert"), "deebert"), make_task(regression=True), RunFolder(tmp_path))


def test_a_batch_in_step_and_more_texts_in_flight_are_timed(tiny_model):
    kind, model, setting = Classification(), tiny_model(), Regrouped(batch_size=2, in_flight=7)
    protocol = TimingSpec(batch_sizes=(2, 7), regrouped=(setting,))
    assert kind.regroupings(Static(), protocol) == (setting,)
    rows, calls = model.tokenize(random_texts(7)), []
    step = model.stepper.step
    model.stepper.step = lambda layer, hidden, context: (calls.append(len(hidden)), step(layer, hidden, context))[1]
    in_step, in_flight = (kind.time_method(Static(), model, 3.0, **way)(rows) for way in ({}, dict(setting)))
    assert calls == [7] * 3 + [2] * 9 + [1] * 3
    assert (in_step.units, in_step.layer_calls) == (in_flight.units, in_flight.layer_calls) == (7, 21.0)
