"""Results folders as frames: what every line holds, and what several folders make together."""

import pandas as pd
import pytest
from records_by_hand import LAYERS, ROWS, frames_by_hand, made_up_suite, results_of, timing, write_cells

from benchmarks.analysis.comparison import headline
from benchmarks.analysis.frames import load_results, merge
from benchmarks.analysis.tables import tables_of
from benchmarks.store.hashes import unsealed
from consistentee.errors import UserError


def test_knobs_have_a_line_for_every_knob_of_every_cell(results):
    cell = next(n for n, r in enumerate(results.records) if (r.task, r.label, r.seed) == ("rte", "deebert", 1))
    own, written = results.knobs[results.knobs["cell"] == cell], frames_by_hand("deebert")["curve"]
    assert own["layers"].tolist() == written["layers"].tolist()
    assert own["score"].tolist() == written["accuracy"].tolist()
    assert (own["label"] == "deebert").all()
    assert own["flops_ratio"].tolist() == pytest.approx((LAYERS / own["layers"]).tolist())
    timed = own.dropna(subset=["speedup_b1"])
    assert 3 <= len(timed) <= 7
    assert timed["speedup_b1"].tolist() == pytest.approx((LAYERS / timed["layers"]).tolist())


def test_times_count_in_proportion_to_the_layers_that_all_test_rows_run():
    cells = [cell for cell in made_up_suite() if cell[0].label in ("full", "deebert")]
    record, times = timing(cells)
    times = times.drop(columns="layer_calls")  # the records of knobs have the layers, too
    halved = [one.model_copy(update={"average_layers": one.average_layers / 2}) for one in record.timed]
    found = results_of(cells, [(record.model_copy(update={"timed": halved}), times)]).knobs
    known = results_of(cells, [(record, times)]).knobs.query("knob.notna()").dropna(subset=["speedup_b1"])
    half = found.loc[known.index]
    assert half["speedup_b1"].tolist() == pytest.approx((known["speedup_b1"] / 2).tolist())
    assert half["seconds_b1"].tolist() == pytest.approx((known["seconds_b1"] * 2).tolist())


def test_exits_and_answers_give_the_scores_of_the_curve(results):
    cell = next(n for n, r in enumerate(results.records) if (r.task, r.label) == ("mcid", "deebert"))
    answers, labels, places = results.answers_by_layer(cell), results.labels(cell), results.places_of_exits(cell)
    assert answers.shape == (LAYERS, ROWS)
    assert len(places) >= 3
    scores = results.knobs[results.knobs["cell"] == cell].set_index("place")["score"]
    for place in places:
        exits = results.exits(cell, place)
        assert (answers[exits - 1, range(ROWS)] == labels).mean() == pytest.approx(scores[place])
    assert results.exits(cell, 10_000) is None


def test_only_keeps_labels_and_tasks_and_the_full_model(results):
    some = results.only(labels=["deebert"], tasks=["rte"])
    assert list(some.methods) == ["full", "deebert", "majority"]
    assert set(some.knobs["task"]) == {"rte"}
    assert some.frame("answers")["cell"].max() == len(some.records) - 1


def test_the_first_folder_counts_and_recipes_are_never_mixed(tmp_path):
    for folder, tasks in (("first", ("mcid", "rte")), ("other", ("mcid", "sst2"))):
        for task in tasks:
            write_cells(tmp_path / folder, [c for c in made_up_suite(task=task) if c[0].label in ("full", "deebert")])
    first, second = load_results(tmp_path / "first"), load_results(tmp_path / "other")
    merged = merge([first, second])
    assert len(merged.records) == len(first.records) + sum(record.task == "sst2" for record in second.records)
    assert merged.faults == []
    pd.testing.assert_frame_equal(merged.only(tasks=["mcid"]).knobs, first.only(tasks=["mcid"]).knobs)
    for record in (tmp_path / "other").rglob("record.json"):
        text, _ = unsealed(record.read_text())
        record.write_text(text.replace('"training_version": 1', '"training_version": 2'))
    merged = merge([first, load_results(tmp_path / "other")])
    assert {record.task for record in merged.records} == {"mcid", "rte", "sst2"}
    (fault,) = merged.faults
    assert fault.startswith("mcid, minilm-l6 of ")
    assert fault.endswith("in version of training")


def test_references_do_not_make_a_task_count():
    cells = [*made_up_suite(), *(c for c in made_up_suite(task="stsb") if c[0].label in ("full", "majority", "static"))]
    for labels in (None, ["deebert", "pabee"], ["deebert", "pabee", "static"]):
        tasks = results_of(cells).only(labels).tasks
        assert list(tasks.index[tasks["compared"]]) == [("mcid", "minilm-l6")], labels


def test_a_task_within_noise_of_the_majority_class_is_in_no_mean():
    cells = [*made_up_suite(), *made_up_suite(task="rte")]
    assert results_of(cells).tasks["compared"].all()
    for record, frames in cells:
        if (record.task, record.label) == ("rte", "full"):
            frames["answers"] = frames["answers"].assign(answer=frames["rows"]["label"].mode()[0])
    found = results_of(cells)
    assert list(found.tasks.index[found.tasks["compared"]]) == [("mcid", "minilm-l6")]
    assert "within noise of the majority class: rte." in " ".join(tables_of(found)[0].notes)
    assert results_of([one for one in cells if one[0].task == "rte"]).tasks["compared"].all(), "there is no other task"


def test_methods_that_are_named_are_compared_on_the_tasks_that_all_have():
    """STS-B is a regression: DeeBERT is not defined there, and all others ran."""
    regression = [one for one in made_up_suite(task="stsb") if one[0].label != "deebert"]
    as_mlp = {"label": "deebert-mlp", "method": "deebert"}
    variant = [(record.model_copy(update=as_mlp), frames) for record, frames in regression if record.label == "pabee"]
    found = results_of([*made_up_suite(), *regression, *variant])
    assert set(found.tasks.index.get_level_values("task")) == {"mcid", "stsb"}
    named = found.only(["deebert", "pabee", "static"])
    assert list(named.tasks.index) == [("mcid", "minilm-l6")], "a variant with another label is not DeeBERT"
    assert named.faults == ["stsb, minilm-l6: deebert did not run on it"]
    assert set(headline(named)["method"]) == {"deebert", "pabee", "static"}
    with pytest.raises(UserError, match="no task has all of deebert, deebert-mlp"):
        found.only(["deebert", "deebert-mlp"])
