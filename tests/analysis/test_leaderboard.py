"""The leaderboard: ranks, intervals, tasks that are missing, machines, and records that are damaged."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from records_by_hand import ENVIRONMENT, LAYER_ACCURACY, made_up_suite, timing, write_results
from typer.testing import CliRunner

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.leaderboard.areas import machine_of
from benchmarks.analysis.leaderboard.board import load_leaderboard
from benchmarks.analysis.leaderboard.faults import record_fault, timing_fault
from benchmarks.analysis.tables.leaderboard import leaderboard_tables, to_text
from benchmarks.cli import app
from benchmarks.store.folders import write_record
from consistentee.errors import UserError

BY_STRENGTH = [
    *("consistentee", "calm-softmax", "calm-classifier", "berxit"),
    *("pabee", "deebert", "calm-state"),
]
OTHER_MACHINE = {**ENVIRONMENT, "cpu": "Other CPU", "gpus": ["Some GPU"]}


def write_cell(folder, record):
    place = folder / "cells" / record.task / "minilm-l6" / record.label / "default" / f"seed{record.seed}"
    write_record(place / "record.json", record)
    return place / "record.json"


def standing(board, kind="layers"):
    return next(s for s in board.standings if s.kind == kind)


def entry(board, method, kind="layers"):
    return next(e for e in standing(board, kind).entries if e.method == method)


@pytest.fixture
def results(tmp_path):
    write_results(tmp_path / "one", tasks=("mcid", "rte"))
    return tmp_path / "one"


def test_methods_are_ranked_by_their_curves(results):
    board = load_leaderboard([results])
    assert [s.kind for s in board.standings] == ["layers", "time"]
    for found in board.standings:
        assert [e.method for e in found.entries] == BY_STRENGTH
        assert [e.place for e in found.entries] == list(range(1, 8))
        assert [e.rank for e in found.entries] == list(range(1, 8))
        assert (found.tasks, found.runs) == (2, 2)
        assert [e.method for e in found.references] == ["static", "random"]
        assert all(e.place is None and e.rank is None for e in found.references)
    assert board.machines == {"A": "Made-up CPU, 2 cores"}
    assert board.notes == []


def test_the_scale_runs_from_the_majority_class_to_the_full_model(results):
    static = standing(load_leaderboard([results])).references[0]
    floor, full = 0.2, LAYER_ACCURACY[-1]  # static-k is LAYER_ACCURACY; its mean over budgets, by hand:
    layers = np.linspace(1, 6, 501)
    area = np.trapezoid(np.interp(layers, np.arange(1, 7), LAYER_ACCURACY), layers) / 5
    assert static.area == pytest.approx((area - floor) / (full - floor), abs=0.005)


def shifted(record, by):
    """Return a record whose every test score is higher by so much."""
    curve = [p.model_copy(update={"scores": {"accuracy": p.scores["accuracy"] + by}}) for p in record.curve_test]
    return record.model_copy(update={"curve_test": curve})


def test_seeds_of_a_task_are_averaged_before_tasks_are(results):
    one_seed = entry(load_leaderboard([results]), "deebert")
    for seed in (1, 2, 3):
        for record in made_up_suite(seed=seed, task="mcid"):
            write_cell(results, shifted(record, -0.02) if record.label == "deebert" else record)
    found = entry(load_leaderboard([results]), "deebert")
    assert (found.tasks, found.runs) == (2, one_seed.runs + 3)
    (lost,) = {round(one_seed.area - area, 6) for area in found.area_interval if area < one_seed.area - 1e-6}
    assert found.area == pytest.approx(one_seed.area - lost / 2), "a task with four seeds counts as one"
    assert found.area_interval[1] == pytest.approx(one_seed.area), "the other task lost nothing"
    single = entry(load_leaderboard([results]), "pabee")
    assert single.area_interval[0] == pytest.approx(single.area_interval[1])


def test_one_run_has_no_interval(tmp_path):
    write_results(tmp_path)
    found = entry(load_leaderboard([tmp_path]), "deebert")
    assert found.area_interval is None
    assert found.rank_interval is None


def test_a_method_without_a_task_is_marked_and_has_no_place(results):
    shutil.rmtree(results / "cells" / "rte" / "minilm-l6" / "consistentee")
    board = load_leaderboard([results])
    ranked = [e for e in standing(board).entries if e.place]
    assert [e.method for e in ranked] == BY_STRENGTH[1:]
    assert [e.rank for e in ranked] == [1, 2, 3, 4, 5, 6]  # it does not count in the others' ranks
    missing = standing(board).entries[-1]
    assert (missing.method, missing.tasks, missing.runs, missing.place) == ("consistentee", 1, 1, None)
    at_equal_cost, table = leaderboard_tables(board)[:2]
    assert "consistentee" not in [cells[0] for cells in at_equal_cost.cells]
    assert "Without a mean, for want of some task: consistentee." in at_equal_cost.notes
    assert table.cells[6][:2] == ("", "consistentee *")
    assert table.cells[6][4] == "1 of 2"
    assert any(note.startswith("* lacks runs") for note in table.notes)


def test_a_task_that_few_methods_have_takes_no_place_away(results):
    write_results(results, tasks=("stsb",))
    for method in BY_STRENGTH[2:]:
        shutil.rmtree(results / "cells" / "stsb" / "minilm-l6" / method)
    board = load_leaderboard([results])
    layers = standing(board)
    assert [e.method for e in layers.entries if e.place] == BY_STRENGTH
    assert {(e.tasks, e.runs) for e in layers.entries} == {(layers.tasks, layers.runs)} == {(2, 2)}
    note = "stsb, minilm-l6, seed 0: does not count, as fewer than half of the methods have a result"
    assert board.notes.count(note) == 1


# ---------------------------------------------------------------------------------------------- settings


def trained_by(record, recipe, **changes):
    """Return a record of another recipe; ``changes``: of the parts of its key."""
    parts = record.key_parts.model_copy(update={"settings": {"method": "pabee", "recipe": recipe}, **changes})
    return record.model_copy(update={"key": f"{record.key} {recipe} {changes}", "key_parts": parts})


@pytest.fixture
def two_recipes(tmp_path):
    """Two folders: MCID trained for 6 epochs and RTE, and MCID for 12, where the full model is worse and PABEE new."""
    for task in ("mcid", "rte"):
        for record in made_up_suite(task=task):
            if record.label != "pabee":
                write_cell(tmp_path / "six", trained_by(record, {"epochs": 6, "precision": "bfloat16"}))
    for record in made_up_suite():
        lower = shifted(record, -0.1) if record.label == "full" else record
        write_cell(tmp_path / "twelve", trained_by(lower, {"epochs": 12, "precision": "auto"}))
    return [tmp_path / "six", tmp_path / "twelve"]


def test_other_recipes_are_compared_apart(two_recipes):
    board = load_leaderboard(two_recipes)
    assert [panel.task for panel in board.panels] == ["mcid (6 epochs)", "rte", "mcid (12 epochs)"]
    six, _, twelve = board.panels
    assert "pabee" not in six.methods, "no curve of the other recipe joins in"
    assert at_equal_cost(twelve, "deebert", 2.0).points == pytest.approx(
        at_equal_cost(six, "deebert", 2.0).points + 0.1
    ), "points are against the full model of the same recipe"
    alone = [load_leaderboard([folder]) for folder in two_recipes]
    assert {panel.task for board in alone for panel in board.panels} == {"mcid", "rte"}


def test_a_task_of_two_recipes_counts_once_in_areas_and_ranks(two_recipes):
    both = load_leaderboard(two_recipes)
    assert (standing(both).tasks, standing(both).runs) == (2, 3)
    six, twelve = (entry(load_leaderboard([folder]), "deebert") for folder in two_recipes)
    mcid, rte = (six.area + twelve.area) / 2, six.area  # the six epochs' areas are the same on both tasks
    assert entry(both, "deebert").area == pytest.approx((mcid + rte) / 2)
    assert (entry(both, "deebert").tasks, entry(both, "deebert").runs) == (2, 3)
    assert entry(both, "pabee").place is None, "it lacks the other recipe"


def test_notes_and_tables_say_what_differs_between_settings(two_recipes):
    board = load_leaderboard(two_recipes)
    assert board.notes == [
        "mcid, minilm-l6: 2 settings, each compared within itself: 6 epochs, precision bfloat16; 12 epochs, precision "
        "auto"
    ]
    table = leaderboard_tables(board)[0]
    assert table.title == "Points against the full model at equal cost, mean of 3 settings of 2 tasks"
    tasks = "Tasks: mcid (6 epochs) · minilm-l6, rte · minilm-l6, mcid (12 epochs) · minilm-l6."
    assert tasks in table.notes
    assert any(note.startswith("Each setting counts by itself here") for note in table.notes)
    assert leaderboard_tables(load_leaderboard(two_recipes[:1]))[0].title.endswith("mean of 2 tasks")


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ({"epochs": 1}, {}, ("3 epochs", "1 epoch")),
        ({"max_rows": 500}, {}, ("all training rows", "500 training rows")),
        ({"head_learning_rate": 0.5}, {}, ("head learning rate 0.001", "head learning rate 0.5")),
        ({}, {"engine_version": 2}, ("engine version 1", "engine version 2")),
        ({}, {"training_version": 2}, ("training version 1", "training version 2")),
        ({}, {"rows": "others"}, ("rows ", "rows ")),
        ({}, {"backbone": {"files": {"weights": "others"}}}, ("backbone files ", "backbone files ")),
        ({"epochs": 3}, {}, ("recipe ", "recipe ")),
    ],
)
def test_settings_are_named_by_what_tells_them_apart(tmp_path, recipe, changes, words):
    for record in made_up_suite():
        write_cell(tmp_path / "one", trained_by(record, {}))
        write_cell(tmp_path / "two", trained_by(record, recipe, **changes))
    board = load_leaderboard([tmp_path / "one", tmp_path / "two"])
    names = [panel.task for panel in board.panels]
    assert len(set(names)) == 2
    assert all(name.startswith(f"mcid ({word}") for name, word in zip(names, words, strict=True))


def test_as_many_differences_are_named_as_it_takes(tmp_path):
    for record in made_up_suite():
        for folder, epochs, rate in (("a", 2, 0.1), ("b", 2, 0.2), ("c", 4, 0.2)):
            write_cell(
                tmp_path / folder, trained_by(record, {"epochs": epochs, "learning_rate": rate, "max_length": 9})
            )
    board = load_leaderboard([tmp_path / folder for folder in "abc"])
    words = ("2 epochs, learning rate 0.1", "2 epochs, learning rate 0.2", "4 epochs, learning rate 0.2")
    assert [panel.task for panel in board.panels] == [f"mcid ({one})" for one in words]


def test_a_setting_without_a_scale_is_named_apart(two_recipes):
    record = next(r for r in made_up_suite() if r.label == "full")
    flat = [p.model_copy(update={"scores": {"accuracy": 0.1}}) for p in record.curve_test]
    worse = record.model_copy(update={"curve_test": flat})
    write_cell(two_recipes[1], trained_by(worse, {"epochs": 12, "precision": "auto"}))
    board = load_leaderboard(two_recipes)
    assert any(note.startswith("left out: mcid (12 epochs) in ") for note in board.notes)
    assert (standing(board).tasks, standing(board).runs) == (2, 2)


# ---------------------------------------------------------------------------------------------- several folders


def foreign(label, task="mcid", **changes):
    record = next(r for r in made_up_suite(task=task) if r.label == "deebert")
    update = {"label": label, "method": f"{label.lower()}.py:{label}", "environment": OTHER_MACHINE, **changes}
    return record.model_copy(update={**update, "key": f"{task}/{label}"})


def test_a_result_of_another_machine_is_ranked_by_layers_and_marked(results, tmp_path):
    for task in ("mcid", "rte"):
        write_cell(tmp_path / "two", foreign("Mine", task))  # it has neither the full model nor the majority class
    board = load_leaderboard([results, tmp_path / "two"])
    assert board.machines == {"A": "Made-up CPU, 2 cores", "B": "Some GPU"}
    mine, deebert = entry(board, "Mine"), entry(board, "deebert")
    assert mine.area == pytest.approx(deebert.area)
    assert mine.rank == deebert.rank == 6.5
    assert (mine.machines, deebert.machines) == ("B", "A")


def test_times_are_compared_within_one_machine(results, tmp_path):
    cells = [foreign("Mine", task) for task in ("mcid", "rte")]
    for record in cells:
        write_cell(tmp_path / "two", record)
        place = tmp_path / "two" / "timings" / record.task / "minilm-l6" / "seed0" / "timing.json"
        write_record(place, timing([record], task=record.task))
    board = load_leaderboard([results, tmp_path / "two"])
    times = [s for s in board.standings if s.kind == "time"]
    assert [(s.machine, len(s.entries)) for s in times] == [("Made-up CPU, 2 cores", 7), ("Some GPU", 1)]
    assert [t.title for t in leaderboard_tables(board)] == [
        "Points against the full model at equal cost, mean of 2 tasks",
        "Leaderboard by layers",
        "Leaderboard by time at batch size 1, on machine A",
        "Leaderboard by time at batch size 1, on machine B",
    ]


def test_the_folder_named_first_counts_where_two_have_the_same(results, tmp_path):
    write_cell(tmp_path / "two", foreign("deebert", method="deebert"))
    board = load_leaderboard([results, tmp_path / "two"])
    assert entry(board, "deebert").machines == "A"
    deebert = [cell for panel in board.panels for cell in panel.cells if cell.record.label == "deebert"]
    assert [cell.record.task for cell in deebert] == ["mcid", "rte"]
    assert entry(load_leaderboard([tmp_path / "two", results]), "deebert").machines == "A B"


def test_one_label_of_two_methods_is_told_apart(results, tmp_path):
    write_cell(tmp_path / "two", foreign("deebert"))
    methods = {e.method for e in standing(load_leaderboard([results, tmp_path / "two"])).entries}
    assert {"deebert (deebert)", "deebert (deebert.py:deebert)"} <= methods


def test_the_same_folder_twice_is_one(results):
    assert load_leaderboard([results, results]) == load_leaderboard([results])


# ---------------------------------------------------------------------------------------------- damage


def test_what_cannot_be_read_is_named_and_left_out(results, tmp_path):
    place = results / "cells" / "mcid" / "minilm-l6"
    (place / "deebert" / "default" / "seed0" / "record.json").write_text("{")
    (results / "timings" / "rte" / "minilm-l6" / "seed0" / "timing.json").write_text('{"schema_version": 7}')
    board = load_leaderboard([results, tmp_path / "nothing"])
    assert len(board.notes) == 3
    for part in ("deebert", "schema version 7", "nothing holds no results"):
        assert sum(part in note for note in board.notes) == 1
    assert entry(board, "deebert").tasks == 1
    assert entry(board, "pabee").place is not None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"curve_test": []}, "curves are empty"),
        ({"curve_validation": []}, "curves are empty or of different lengths"),
        ({"operating_points": []}, "no operating point"),
        ({"metric": "f1"}, "no finite f1"),
        ({"num_layers": 9}, "does not hold 9 layers"),
    ],
)
def test_a_record_that_validates_but_says_nothing_is_left_out(results, changes, fault):
    record = next(r for r in made_up_suite() if r.label == "deebert").model_copy(update=changes)
    assert fault in record_fault(record)
    write_cell(results, record)
    board = load_leaderboard([results])
    assert any(fault in note for note in board.notes)
    assert entry(board, "deebert").tasks == 1


def test_infinite_scores_and_empty_histograms_are_faults():
    record = next(r for r in made_up_suite() if r.label == "deebert")
    point = record.curve_test[0]
    for update, fault in (
        ({"scores": {"accuracy": float("nan")}}, "no finite accuracy"),
        ({"exit_histogram": [0] * 6}, "exit histogram"),
        ({"exit_histogram": [-1, 2, 0, 0, 0, 0]}, "exit histogram"),
    ):
        bad = [point.model_copy(update=update), *record.curve_test[1:]]
        assert fault in record_fault(record.model_copy(update={"curve_test": bad}))
    assert record_fault(record) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seconds_per_round": [1.0]}, "lacks rounds"),
        ({"seconds_per_round": [0.0, 1.0, 1.0]}, "times that are none"),
        ({"seconds_per_batch": [[1.0], [1.0], [1.0]]}, "lacks batches"),
    ],
)
def test_timings_that_cannot_be_are_left_out(results, change, fault):
    place = results / "timings" / "mcid" / "minilm-l6" / "seed0" / "timing.json"
    values = json.loads(place.read_text())
    values["contenders"][1]["samples"][0] |= change
    place.write_text(json.dumps(values))
    board = load_leaderboard([results])
    assert any(fault in note for note in board.notes)
    assert standing(board, "time").tasks == 1
    assert timing_fault(timing(made_up_suite())) is None


def test_a_full_model_no_better_than_the_majority_gives_no_scale(results):
    record = next(r for r in made_up_suite() if r.label == "full")
    flat = [p.model_copy(update={"scores": {"accuracy": 0.1}}) for p in record.curve_test]
    write_cell(results, record.model_copy(update={"curve_test": flat}))
    board = load_leaderboard([results])
    assert "no better there than the most frequent class" in board.notes[0]
    assert standing(board).tasks == 1


def test_where_no_full_model_beats_the_majority_there_is_a_warning_and_no_standing(tmp_path):
    for record in made_up_suite():
        if record.task == "mcid":
            flat = [p.model_copy(update={"scores": {"accuracy": 0.1}}) for p in record.curve_test]
            write_cell(tmp_path, record.model_copy(update={"curve_test": flat}) if record.label == "full" else record)
    board = load_leaderboard([tmp_path])
    assert board.standings == []
    assert all("no better there than the most frequent class" in note for note in board.notes)
    for options in ((), ("--format", "md"), ("--format", "csv")):
        done = CliRunner().invoke(app, ["leaderboard", str(tmp_path), *options])
        assert done.exit_code == 0, done.output
        assert ("no better there" in " ".join(done.output.split())) == ("csv" not in options)


def test_a_narrow_scale_is_warned_of_and_kept(results):
    record = next(r for r in made_up_suite() if r.label == "full")
    flat = [p.model_copy(update={"scores": {"accuracy": 0.23}}) for p in record.curve_test]
    write_cell(results, record.model_copy(update={"curve_test": flat}))
    board = load_leaderboard([results])
    assert board.notes == [
        "mcid, minilm-l6, seed 0: the full model is only 3.0 points above the most frequent class, so areas there are "
        "mostly noise; trust the ranks"
    ]
    assert standing(board).tasks == 2


def test_nothing_to_rank_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no results to rank; .*holds no results"):
        load_leaderboard([tmp_path])


def test_machines_are_named_by_what_computes():
    record = made_up_suite()[0]
    assert machine_of(record) == "Made-up CPU, 2 cores"
    assert machine_of(record.model_copy(update={"environment": OTHER_MACHINE})) == "Some GPU"
    assert machine_of(record.model_copy(update={"environment": {}})) == "unknown CPU"


# ---------------------------------------------------------------------------------------------- forms


def test_markdown_and_csv_hold_the_same_standings(results, tmp_path):
    board = load_leaderboard([results, tmp_path / "nothing"])
    markdown = to_text(board, "md")
    assert markdown.count("| 1 | consistentee |") == 2
    assert "left out: " in markdown
    rows = list(csv.DictReader(io.StringIO(to_text(board, "csv"))))
    assert [row["method"] for row in rows if row["cost"] == "layers" and row["place"]] == BY_STRENGTH
    assert {row["machines"] for row in rows} == {"Made-up CPU, 2 cores"}
    with pytest.raises(UserError, match="unknown format of a leaderboard 'html'"):
        to_text(board, "html")


def test_the_command_prints_to_the_terminal_and_as_text(results):
    shown = CliRunner().invoke(app, ["leaderboard", str(results)])
    assert shown.exit_code == 0, shown.output
    assert "Leaderboard by layers" in shown.output
    assert "static (reference)" in shown.output
    assert "A: Made-up CPU, 2 cores" in shown.output
    text = CliRunner().invoke(app, ["leaderboard", str(results), "--format", "md"])
    assert text.output.startswith("## Points against the full model at equal cost, mean of 2 tasks")
    assert "## Leaderboard by layers" in text.output
