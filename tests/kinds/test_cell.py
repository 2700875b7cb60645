"""One cell: knobs are chosen on validation data, live runs agree with replays, what is written agrees with itself."""

import pandas as pd
import pytest
from conftest import make_task, random_texts
from records_by_hand import cell_spec, parts_by_hand

from baselines.references import Static
from benchmarks.commands.verify import faults_of
from benchmarks.kinds.classification import Classification
from benchmarks.kinds.kind import CellRows
from benchmarks.run.cell import run_cell
from benchmarks.specs.base import CellSpec, Regrouped, TimingSpec
from benchmarks.specs.knob_choice import concave_hull
from benchmarks.specs.targets import Budget
from benchmarks.store.folders import LOG_FILE, PREDICTIONS_FILE, VALIDATION_FILE, RunFolder, read_cell, read_rows
from benchmarks.store.records import BaseRecord, CellRecord
from consistentee.data.instances import TaskData
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.training.recipe import RecipeSettings

LAYERS = 4
TASK = make_task()


def spec_of(backbone: object, method: str, **changes: object) -> CellSpec:
    recipe = RecipeSettings(epochs=1, max_length=16)
    return cell_spec(task="toy", backbone=str(backbone), method=method, label=method, recipe=recipe, **changes)


def run(spec: CellSpec, task: TaskData, folder: RunFolder) -> BaseRecord:
    return run_cell(spec, parts_by_hand(), CellRows(task, task), folder, command="")


@pytest.mark.parametrize("method", ["full", "calm-softmax", "oracle", "hashee"])
def test_cell_leaves_a_record_that_its_rows_bear_out(tmp_path, tiny_backbone, method):
    spec, folder = spec_of(tiny_backbone("bert"), method), RunFolder(tmp_path)
    run(spec, TASK, folder)
    place = folder.cell(spec)
    record, fault = read_cell(place, parts_by_hand(), CellRecord)
    assert fault is None
    assert [fault for fault in faults_of(tmp_path) if str(place) in fault] == [], (
        "scores, exits and answers of its rows"
    )
    assert read_rows(place / PREDICTIONS_FILE).to_pandas()["label"].tolist() == list(TASK.test.labels)
    assert read_rows(place / VALIDATION_FILE).to_pandas()["label"].tolist() == list(TASK.validation.labels)
    for operating_point in record.operating_points:
        assert operating_point.live_disagreements == 0
        assert operating_point.live_rows == (0 if method == "oracle" else len(TASK.test))
        assert operating_point.flops > 0
    curve = [(point.average_layers, point.scores[record.metric]) for point in record.curve_validation]
    assert [point.place for point in record.hull] == concave_hull(*zip(*curve, strict=True)).tolist()
    assert all(0 < point.validation_flops <= 1.1 * record.full_validation_flops for point in record.hull)
    if method == "full":
        assert record.operating_points[0].flops == record.full_flops
    if method == "hashee":
        assert record.operating_points[0].flops < record.full_flops
        assert 1 < record.operating_points[0].test.average_layers < 4
    assert record.losses.keys() >= record.validation_by_epoch.keys()
    assert all(0 < len(losses) <= 50 for losses in record.losses.values())
    assert "trained in" in (place / LOG_FILE).read_text()
    saved = MultiExitModel.from_pretrained(folder.model(parts_by_hand().key)).description
    assert (saved.method_name, saved.task_name, saved.max_length) == (method, "toy", 16)
    assert saved.default_knob in [point.knob for point in record.operating_points]


def test_a_cascades_record_counts_its_own_layers_and_names_the_stock_models(tmp_path, tiny_backbone):
    spec = spec_of(tiny_backbone("bert"), "cascade-bert", parameters={"companion_layers": 2})
    folder = RunFolder(tmp_path)
    written = run(spec, TASK, folder)
    record, fault = read_cell(folder.cell(spec), parts_by_hand(), CellRecord)
    assert fault is None
    assert record == written
    assert list(record.losses) == ["last-exit", *(f"last-exit ({fold})" for fold in (2, 3, 4)), "companion"]
    assert record.num_layers == LAYERS
    assert {len(p.exit_histogram) for p in record.curve_test} == {LAYERS + 2}
    assert all(sum(p.exit_histogram) == p.exit_histogram[1] + p.exit_histogram[-1] for p in record.curve_test)
    within = next(p for p in record.operating_points if Budget(layers_at_most=0.5) in p.targets)
    assert within.validation.average_layers <= LAYERS / 2
    assert all(p.live_disagreements == 0 for p in record.operating_points)


def test_a_shorter_models_record_counts_its_own_layers_and_measures_by_the_stock_models(tmp_path, tiny_backbone):
    full = run(spec_of(tiny_backbone("bert"), "full"), TASK, RunFolder(tmp_path / "full"))
    spec, folder = spec_of(tiny_backbone("bert"), "cut", parameters={"depth": 2}), RunFolder(tmp_path / "cut")
    record = run(spec, TASK, folder)
    assert [fault for fault in faults_of(folder.root) if str(folder.cell(spec)) in fault] == []
    assert (record.num_layers, record.full_flops) == (LAYERS, full.full_flops)
    assert record.trained_rows == full.trained_rows / 2
    (point,) = record.operating_points
    assert (point.knob, point.test.average_layers, point.live_disagreements) == (2, 2, 0)
    assert point.flops < 0.55 * record.full_flops


@pytest.mark.parametrize("last", ["save_pretrained", "to_parquet"])
def test_a_cell_that_dies_while_it_is_made_again_is_no_cell(tmp_path, tiny_backbone, monkeypatch, last):
    spec, folder = spec_of(tiny_backbone("bert"), "full"), RunFolder(tmp_path)
    run(spec, TASK, folder)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr({"save_pretrained": MultiExitModel, "to_parquet": pd.DataFrame}[last], last, killed)
    with pytest.raises(KeyboardInterrupt):
        run(spec, TASK, folder)
    assert read_cell(folder.cell(spec), parts_by_hand(), CellRecord) == (None, None)


def test_regression(tmp_path, tiny_backbone):
    task = make_task(regression=True)
    spec = spec_of(tiny_backbone("bert"), "pabee")
    record = run(spec, task, RunFolder(tmp_path))
    assert record.metric == "pearson"
    assert all(p.live_disagreements == 0 for p in record.operating_points)
    with pytest.raises(UserError, match="deebert is not defined for a regression"):
        run(spec_of(tiny_backbone("bert"), "deebert"), task, RunFolder(tmp_path))


def test_a_batch_in_step_and_more_texts_in_flight_are_timed(tiny_model):
    kind, model, setting = Classification(), tiny_model(), Regrouped(batch_size=2, in_flight=7)
    protocol = TimingSpec(batch_sizes=(2, 7), regrouped=(setting,))
    assert kind.regroupings(Static(), protocol) == (setting,)
    rows, calls = model.tokenize(random_texts(7)), []
    step = model.stepper.step
    model.stepper.step = lambda layer, hidden, context: (calls.append(len(hidden)), step(layer, hidden, context))[1]
    in_step, in_flight = (kind.time_method(Static(), model, 3.0, way)(rows) for way in (None, setting))
    assert calls == [7] * 3 + [2] * 9 + [1] * 3
    assert in_step.layers == in_flight.layers == [3.0] * 7
    samples = kind.samples(2, 7, [[in_flight]] * 3, 7)
    assert samples.in_flight == 7
    assert kind.samples(7, 7, [[in_step]] * 3).in_flight is None
