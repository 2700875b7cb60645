"""Results folders as frames: what every line holds, several folders together, and a run among published results."""

import shutil
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from records_by_hand import LAYERS, ROWS, SHIFTS, cell, frames_by_hand, made_up_suite, results_of, timing, write_results
from rich.console import Console

from benchmarks.analysis.board import report_files
from benchmarks.analysis.comparison import comparison_of, headline
from benchmarks.analysis.figures import leading_labels
from benchmarks.analysis.frames import load_folders, load_results, merge, with_published
from benchmarks.analysis.tables import headline_table, tables_of
from benchmarks.commands.publish import publish_run
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
    cells = made_up_suite(labels=("full", "deebert"))
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
    answers, labels, known = results.answers_by_layer(cell), results.labels(cell), results.exits(cell)
    assert answers.shape == (LAYERS, ROWS)
    assert len(known) >= 3
    scores = results.knobs[results.knobs["cell"] == cell].set_index("place")["score"]
    for place, exits in known.items():
        assert (answers[exits - 1, range(ROWS)] == labels).mean() == pytest.approx(scores[place])


def test_exits_are_known_where_all_rows_exit_at_one_layer():
    """They need not be kept: a static exit then gains exactly nothing over itself."""
    frames = frames_by_hand("static", [2.0, 4.0])
    counts = [[0, ROWS, 0, 0, 0, 0], [0, 0, 1, ROWS - 1, 0, 0], [0, 0, 0, 0, 0, ROWS]]
    frames |= {"curve": frames["curve"].assign(exit_histogram=counts), "exits": frames["exits"].iloc[:0]}
    exits = results_of([(cell("static"), frames)]).exits(0)
    assert {place: set(layers) for place, layers in exits.items()} == {0: {2}, 2: {6}}


def test_only_keeps_labels_and_tasks_and_the_full_model(results):
    some = results.only(labels=["deebert"], tasks=["rte"])
    assert list(some.methods) == ["full", "deebert", "majority"]
    assert set(some.knobs["task"]) == {"rte"}
    assert some.frame("answers")["cell"].max() == len(some.records) - 1


def test_the_first_folder_counts_and_recipes_are_never_mixed(tmp_path):
    for folder, tasks in (("first", ("mcid", "rte")), ("other", ("mcid", "sst2"))):
        write_results(tmp_path / folder, tasks, labels=("full", "deebert"))
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
    cells = [*made_up_suite(), *made_up_suite(task="stsb", labels=("full", "majority", "static"))]
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


SHOWN = SHIFTS.keys() - {"oracle"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all methods, and its publication."""
    folder = tmp_path_factory.mktemp("everything")
    write_results(folder / "run")
    publish_run(folder / "run", folder / "published")
    return folder


@pytest.fixture
def small_run(everything: Path, tmp_path: Path) -> Path:
    """A run of one method alone: neither the full model nor a timing is there."""
    place = Path("cells", "mcid", "minilm-l6", "pabee")
    shutil.copytree(everything / "run" / place, tmp_path / "run" / place)
    (record,) = tmp_path.rglob("record.json")
    record.write_text(unsealed(record.read_text())[0].replace("2026-01-01T00:01", "2026-01-01T00:09"))
    return tmp_path / "run"


def printed(run: Path, folders: list[Path]) -> str:
    console = Console(width=300)
    found = mock.patch("benchmarks.analysis.board.published_folders", return_value=folders)
    with console.capture() as capture, found:
        console.print(report_files(run))
    return capture.get()


def test_the_methods_of_a_run_are_marked_among_the_published(everything, small_run):
    board = load_folders([small_run], [everything / "published"])
    cells = headline_table(board).cells
    assert cells.loc[cells["method"].str.endswith(" •"), "method"].tolist() == ["pabee •"]
    cells = cells.assign(method=cells["method"].str.removesuffix(" •")).set_index("method")
    assert set(cells.index) == SHOWN
    found = comparison_of(load_results(everything / "run")).headline.set_index(["method", "budget"])
    for label in SHOWN:
        assert cells.at[label, "at 2x"].split()[0].rstrip("†") == f"{found.at[(label, 2.0), 'points']:+.1f}"
    assert "pabee" in leading_labels(board), "its curve is drawn, however good the others are"
    assert cells.at["static", "clock 2x b1"] == f"{found.at[('static', 2.0), 'speedup_b1']:.2f}"
    assert not board.faults


def test_published_or_single_results_are_not_marked(everything, small_run):
    for folders in ([everything / "published"], [everything / "run"], [everything / "run", everything / "published"]):
        assert not load_folders(folders, [everything / "published"]).own_labels, "a run starts from published cells"
    alone = load_folders([small_run])
    assert (alone.labels_to_compare, len(alone.own_labels)) == (["pabee"], 0)


def test_times_of_other_processors_are_left_out(everything, small_run):
    for record in small_run.rglob("record.json"):
        record.write_text(unsealed(record.read_text())[0].replace("Made-up CPU", "Another CPU"))
    board = with_published(load_results(small_run), [everything / "published"])
    assert board.times.empty
    assert "clock 2x b1" not in headline_table(board).cells


def test_the_tasks_of_a_run_count_however_few_published_methods_have_them(everything, small_run):
    write_results(small_run, ("mine",), labels=("full", "pabee", "static"))
    board = load_folders([small_run], [everything / "published"])
    assert comparison_of(board).compared == [("mcid", "minilm-l6"), ("mine", "minilm-l6")]


def test_one_screen_says_how_to_read_it_and_what_next(everything, small_run):
    shown = printed(small_run, [everything / "published"])
    assert len(shown.splitlines()) <= 26
    assert "Points against the full model at equal cost, mcid · minilm-l6" in shown
    assert "•: of this run; the others are published" in shown
    assert f"Also written to {small_run}: table.md, curves.png" in shown, "there is no headline without a full model"
    assert not (small_run / "headline.csv").exists()
    assert f"consistentee table {small_run}" in shown
    alone = printed(small_run, [])
    assert ("pabee" in alone, "2x" in alone, "Points against the full model" in alone) == (True, True, False)


def test_busy_machines_are_named(everything, tmp_path):
    shutil.copytree(everything / "run", tmp_path / "busy")
    (file,) = (tmp_path / "busy").rglob("timing.json")
    calm, _ = unsealed(file.read_text())
    file.write_text(calm.replace('"environment_before": {', '"environment_before": {"load_average": [9, 9, 9],'))
    assert "Check the times: mcid, seed 0: a load" in printed(tmp_path / "busy", [])
    assert "Check the times" not in printed(everything / "run", [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"settings": {', '"settings": {\n   "recipe": {"epochs": 9},'),
        ('"rows": "rows"', '"rows": "others"'),
        ('"training_version": 1', '"training_version": 2'),
        ('"engine_version": 1', '"engine_version": 2'),
        ('"files": {}', '"files": {"weights": "others"}'),
        ('"seed": 0', '"seed": 1'),
    ],
)
def test_results_of_other_recipes_are_not_compared(everything, small_run, old, new):
    record = next(small_run.rglob("record.json"))
    assert old in record.read_text()
    record.write_text(unsealed(record.read_text())[0].replace(old, new))
    board = with_published(load_results(small_run), [everything / "published"])
    assert {record.label for record in board.records} == {"pabee"}


def test_unreadable_publications_are_named(everything, small_run, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cells.parquet").write_text("no")
    shown = printed(small_run, [tmp_path / "broken", everything / "published"])
    assert "left out:" in shown
    assert "deebert" in shown


def test_a_part_of_results_has_faults_of_its_own(everything):
    whole = load_results(everything / "run")
    part = whole.where([True] * len(whole.records))
    part.faults.append("of the part")
    assert "of the part" not in whole.faults
