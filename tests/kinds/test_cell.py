"""One cell: knobs are chosen on validation data, live runs agree with replays, what is written agrees with itself."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_task, random_texts
from records_by_hand import parts_by_hand

from baselines.references import Static
from benchmarks.kinds.classification import Classification
from benchmarks.kinds.kind import CellRows
from benchmarks.run.cell import run_cell
from benchmarks.specs.base import CellSpec, Regrouped, TimingSpec
from benchmarks.specs.knob_choice import concave_hull
from benchmarks.specs.targets import HALF
from benchmarks.store.folders import LOG_FILE, PREDICTIONS_FILE, VALIDATION_FILE, RunFolder, read_cell, read_rows
from benchmarks.store.records import BaseRecord, CellRecord
from consistentee.data.instances import TaskData
from consistentee.data.metrics import score
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.training.recipe import RecipeSettings

LAYERS = 4


def spec_of(backbone: object, method: str, **changes: object) -> CellSpec:
    values = {
        "task": "toy",
        "backbone": str(backbone),
        "method": method,
        "label": method,
        "parameters": {},
        "seed": 0,
        "recipe": RecipeSettings(epochs=1, max_length=16),
        "validation_rows": None,
        "test_rows": None,
        "budgets": (0.5,),
        "bootstrap_resamples": 100,
    }
    return CellSpec.model_validate({**values, **changes})


def run(spec: CellSpec, task: TaskData, folder: RunFolder) -> BaseRecord:
    return run_cell(spec, parts_by_hand(), CellRows(task, task), folder, command="")


@pytest.mark.parametrize("method", ["full", "calm-softmax", "oracle", "hashee"])
def test_cell_leaves_a_record_that_its_predictions_bear_out(tmp_path, tiny_backbone, toy_task, method):
    spec, folder = spec_of(tiny_backbone("bert"), method), RunFolder(tmp_path)
    run(spec, toy_task, folder)
    record, fault = read_cell(folder.cell(spec), parts_by_hand(), CellRecord)
    assert fault is None
    table = read_rows(folder.cell(spec) / PREDICTIONS_FILE).to_pandas()
    assert table["label"].tolist() == list(toy_task.test.labels)
    for number, operating_point in enumerate(record.operating_points):
        exits = table[f"exit_layer_{number}"]
        assert np.bincount(exits, minlength=5)[1:].tolist() == operating_point.test.exit_histogram
        accuracy = float((table[f"prediction_{number}"] == table["label"]).mean())
        assert accuracy == pytest.approx(operating_point.test.scores["accuracy"])
        assert operating_point.live_disagreements == 0
        assert operating_point.live_rows == (0 if method == "oracle" else len(toy_task.test))
        assert operating_point.flops > 0
        by_layer = table[[f"layer_prediction_{t}" for t in range(1, 5)]].to_numpy()
        assert (by_layer[np.arange(len(table)), exits - 1] == table[f"prediction_{number}"]).all()
        assert operating_point.test in record.curve_test
        assert operating_point.validation in record.curve_validation
    assert_the_hull_is_kept(record, table, pd.read_parquet(folder.cell(spec) / VALIDATION_FILE), toy_task)
    if method == "full":
        assert record.operating_points[0].flops == record.full_flops
    if method == "hashee":
        assert record.operating_points[0].flops < record.full_flops
        assert 1 < record.operating_points[0].test.average_layers < 4
    assert record.backbone == "bert"
    assert record.losses.keys() >= record.validation_by_epoch.keys()
    assert all(0 < len(losses) <= 50 for losses in record.losses.values())
    assert record.losses
    assert "trained in" in (folder.cell(spec) / LOG_FILE).read_text()
    model = MultiExitModel.from_pretrained(folder.model(parts_by_hand().key))
    saved = model.description
    assert (saved.method_name, saved.task_name, saved.max_length) == (method, "toy", 16)
    assert saved.default_knob in [point_.knob for point_ in record.operating_points]


def assert_the_hull_is_kept(record, test, validation, task):
    """Every vertex of the hull of the validation curve has its rows' answers, exits and operations, on both splits."""
    curve = [(point.average_layers, point.scores[record.metric]) for point in record.curve_validation]
    assert [point.place for point in record.hull] == concave_hull(*zip(*curve, strict=True)).tolist()
    assert validation["label"].tolist() == list(task.validation.labels)
    for number, point in enumerate(record.hull):
        answers = validation[f"hull_prediction_{number}"]
        assert score(record.metric, validation["label"], answers) == pytest.approx(curve[point.place][1])
        assert 0 < point.validation_flops <= 1.1 * record.full_validation_flops
        at_test = record.curve_test[point.place]
        same = [other.flops for other in record.operating_points if other.knob == at_test.knob]
        assert same in ([], [point.flops])
        if not same:  # an operating point has columns of its own
            exits = test[f"hull_exit_layer_{number}"]
            assert np.bincount(exits, minlength=5)[1:].tolist() == at_test.exit_histogram
            by_layer = np.stack([test[f"layer_prediction_{layer}"] for layer in range(1, exits.max() + 1)])
            answers = by_layer[exits - 1, np.arange(len(exits))]
            assert score(record.metric, test["label"], answers) == pytest.approx(at_test.scores[record.metric])


def test_a_cascades_record_counts_its_own_layers_and_names_the_stock_models(tmp_path, tiny_backbone, toy_task):
    spec, folder = (
        spec_of(tiny_backbone("bert"), "cascade-bert", parameters={"companion_layers": 2}),
        RunFolder(tmp_path),
    )
    written = run(spec, toy_task, folder)
    record, fault = read_cell(folder.cell(spec), parts_by_hand(), CellRecord)
    assert fault is None
    assert record == written
    assert list(record.losses) == ["last-exit", *(f"last-exit ({fold})" for fold in (2, 3, 4)), "companion"]
    assert record.num_layers == LAYERS
    assert {len(p.exit_histogram) for p in record.curve_test} == {LAYERS + 2}
    assert all(sum(p.exit_histogram) == p.exit_histogram[1] + p.exit_histogram[-1] for p in record.curve_test)
    within = next(p for p in record.operating_points if HALF in p.targets)
    assert within.validation.average_layers <= LAYERS / 2
    assert all(p.live_disagreements == 0 for p in record.operating_points)


def test_texts_are_tokenised_once_to_train_and_once_to_measure(tmp_path, tiny_backbone, toy_task, monkeypatch):
    """LeeBERT trains in several stages."""
    tokenize, seen = MultiExitModel.tokenize, []

    def noted(model, texts, max_length=None):
        seen.extend(texts)
        return tokenize(model, texts, max_length)

    monkeypatch.setattr(MultiExitModel, "tokenize", noted)
    recipe = RecipeSettings(epochs=1, max_length=16, frozen_steps=4)
    spec = spec_of(tiny_backbone("bert"), "leebert", recipe=recipe)
    record = run(spec, toy_task, RunFolder(tmp_path))
    assert all(p.live_rows == len(toy_task.test) for p in record.operating_points)
    trained, measured = (toy_task.train, toy_task.validation), (toy_task.validation, toy_task.test)
    splits = (*trained, *measured)  # validation rows judge every epoch, and knobs are chosen on them
    assert sorted(seen) == sorted(text for split in splits for text in split.texts)


@pytest.mark.parametrize("last", ["save_pretrained", "to_parquet"])
def test_a_cell_that_dies_while_it_is_made_again_is_no_cell(tmp_path, tiny_backbone, toy_task, monkeypatch, last):
    spec, folder = spec_of(tiny_backbone("bert"), "full"), RunFolder(tmp_path)
    run(spec, toy_task, folder)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr({"save_pretrained": MultiExitModel, "to_parquet": pd.DataFrame}[last], last, killed)
    with pytest.raises(KeyboardInterrupt):
        run(spec, toy_task, folder)
    assert read_cell(folder.cell(spec), parts_by_hand(), CellRecord) == (None, None)


def test_regression(tmp_path, tiny_backbone):
    task = make_task(regression=True)
    spec = spec_of(tiny_backbone("bert"), "pabee")
    record = run(spec, task, RunFolder(tmp_path))
    assert record.metric == "pearson"
    assert all(p.live_disagreements == 0 for p in record.operating_points)
    with pytest.raises(UserError, match="deebert is not defined for a regression"):
        run_cell(
            spec_of(tiny_backbone("bert"), "deebert"),
            parts_by_hand(),
            CellRows(task, task),
            RunFolder(tmp_path),
            command="",
        )


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
    assert (samples.regroups, samples.in_flight) == (True, 7)
    assert not kind.samples(7, 7, [[in_step]] * 3).regroups
