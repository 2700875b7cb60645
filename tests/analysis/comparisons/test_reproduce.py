"""Tables of papers by name: what is printed, ours beside it, and what runs."""

import csv
import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from documents import ROOT
from records_by_hand import LAYERS, cell, curve_point, operating_point, stored, write_results
from typer.testing import CliRunner

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.papers import compare_with_paper, printed_full, printed_points, scored_by
from benchmarks.analysis.comparisons.resampled import interval_at_equal_cost
from benchmarks.analysis.panels.published import published_results
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.tables.publications.papers import condition_lines, paper_lines, paper_table
from benchmarks.cli import app
from benchmarks.commands.reproduce import Reproduction
from benchmarks.specs.papers import PaperTable, list_papers, load_paper
from benchmarks.specs.suites import load_suite
from benchmarks.store.folders import write_predictions, write_record
from benchmarks.store.records import CellRecord
from benchmarks.tasks.loader import list_tasks
from consistentee.errors import UserError

ROWS = 200
COSEE = load_paper("cosee-glue")


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"CONSISTENTEE_DATA": "", "COLUMNS": "200"})


def points_of(paper, method, task, backbone="BERT-base"):
    (entry,) = (one for one in paper.methods if (one.printed, one.backbone) == (method, backbone))
    (column,) = (one for one in paper.columns if one.task == task)
    return printed_points(paper, entry, column), printed_full(paper, entry, column)


def answers_right(share, generator):
    labels = np.arange(ROWS) % 2
    return np.where(generator.random(ROWS) < share, labels, 1 - labels)


def write_cell(folder, label, places, *, task="rte", seed=0, keep=True):
    """Write predictions of a cell with a point at each of (layers, share of rows that are right); return it, stored."""
    generator = np.random.default_rng([seed, len(label), len(places)])
    labels = np.arange(ROWS) % 2
    columns = {"row": np.arange(ROWS), "label": labels}
    points = []
    for i, (layers, right) in enumerate(places):
        answers = answers_right(right, generator)
        point = operating_point(float(i), "budget 0.50", layers, float(np.mean(answers == labels)))
        points.append(point)
        columns |= {f"prediction_{i}": answers, f"exit_layer_{i}": np.ones(ROWS, dtype=int)}
    record = cell(label, points, task=task, seed=seed)
    folder = folder / task / label / str(seed)
    if keep:
        write_predictions(folder / "predictions.parquet", pd.DataFrame(columns))
    return stored(record, folder)


def rte_cells(folder, seeds=(0, 1), keep=True):
    full = [write_cell(folder, "full", [(LAYERS, 0.9)], seed=seed) for seed in seeds]
    return [
        *full,
        *(write_cell(folder, "deebert", [(2.0, 0.6), (4.0, 0.85)], seed=seed, keep=keep) for seed in seeds),
    ]


def compared(cells, labels=("deebert", "pabee"), table=COSEE):
    return compare_with_paper(table, "minilm-l6", panels(cells, []), labels, command="run it")


# ---------------------------------------------------------------------------------------------- what is printed


@pytest.mark.parametrize("name", list_papers())
def test_every_name_of_a_table_is_printed_and_ours_exist(name):
    paper = load_paper(name)
    assert paper.name == name
    assert {column.task for column in paper.columns} <= set(list_tasks())
    for method in paper.methods:
        found = [points_of(paper, method.printed, column.task, method.backbone) for column in paper.columns]
        assert any(points for points, _ in found), method.printed
        assert any(full is not None for _, full in found), method.full
    for column in paper.columns:
        printed = {result.metric for result in published_results() if result.table == paper.table}
        assert set(column.printed_metrics) <= printed
        assert any(points_of(paper, m.printed, column.task, m.backbone)[0] for m in paper.methods)
    for setting in (*paper.settings, paper.paper_setting):
        suite = load_suite(setting.suite)
        assert setting.backbone in suite.backbones
        assert set(paper.labels) & {entry.label for entry in suite.methods}


def test_scores_are_set_against_the_full_model_of_the_same_metric():
    (point,), full = points_of(load_paper("consistentee-glue"), "ConsistentEE", "rte")
    assert (point.score, point.speedup, full) == (0.69, 1.85, 66.4)
    assert point.points == pytest.approx(0.026)
    (qqp,), full = points_of(load_paper("consistentee-glue"), "ConsistentEE", "qqp")
    assert (qqp.score, qqp.points, full) == (0.89, None, None)


def test_differences_are_taken_as_printed_and_saved_time_becomes_a_ratio():
    points, full = points_of(load_paper("deebert-glue"), "DeeBERT", "mnli")
    assert full == 83.9  # of matched and mismatched the first
    assert [point.points for point in points] == pytest.approx([-0.0, -0.008, -0.039])
    assert [point.speedup for point in points] == pytest.approx([1 / 0.86, 1 / 0.75, 1 / 0.63])
    assert {point.score for point in points} == {None}


# ---------------------------------------------------------------------------------------------- ours beside it


def test_ours_is_mixed_to_the_printed_speedup_and_compared_in_points(tmp_path):
    comparison = compared(rte_cells(tmp_path))
    cell_of_rte = comparison.rows[0].cells["rte"]
    ours, printed = cell_of_rte.ours["deebert"], cell_of_rte.printed
    panel = comparison.panels["rte"]
    assert ours.at == at_equal_cost(panel, "deebert", 1.95)
    assert ours.at.layers == pytest.approx(LAYERS / 1.95)
    assert ours.minus(printed) == pytest.approx(ours.at.points - (0.643 - 0.664))
    low, high = ours.interval_minus(printed)
    assert low < ours.minus(printed) < high
    assert high - low == pytest.approx(ours.interval[1] - ours.interval[0])


def test_the_interval_is_of_the_mixture_against_the_full_model(tmp_path):
    (panel,) = panels(rte_cells(tmp_path, seeds=(0,)), [])
    found = interval_at_equal_cost(panel, "deebert", 2.0)
    labels = np.arange(ROWS) % 2
    right = {
        name: pd.read_parquet(tmp_path / "rte" / name / "0" / "predictions.parquet") for name in ("deebert", "full")
    }
    share = [right["deebert"][f"prediction_{i}"].to_numpy() == labels for i in (0, 1)]
    difference = (share[0] + share[1].astype(float)) / 2 - (right["full"]["prediction_0"].to_numpy() == labels)
    error = 1.96 * difference.std() / np.sqrt(ROWS)
    assert found == pytest.approx((difference.mean() - error, difference.mean() + error), abs=0.02)
    assert found[0] < at_equal_cost(panel, "deebert", 2.0).points < found[1]


def test_the_full_model_against_itself_differs_by_nothing(tmp_path):
    cells = [write_cell(tmp_path, "full", [(LAYERS, 0.8)], seed=seed) for seed in (0, 1)]
    (panel,) = panels(cells, [])
    assert interval_at_equal_cost(panel, "full", 1.0) == (0.0, 0.0)


def test_without_rows_there_is_no_interval_but_a_difference(tmp_path):
    comparison = compared(rte_cells(tmp_path, keep=False))
    ours, printed = comparison.rows[0].cells["rte"].ours["deebert"], comparison.rows[0].cells["rte"].printed
    assert ours.interval is None
    assert ours.interval_minus(printed) is None
    assert ours.minus(printed) is not None


def test_another_metric_of_the_records_scores_them():
    place = curve_point(0.0, 3.0, 0.8)
    both = place.model_copy(update={"scores": {"accuracy": 0.8, "f1": 0.6}})
    values = cell("deebert", [operating_point(0.0, "budget 0.50", 3.0, 0.8)], curve=[both], task="mrpc")
    (panel,) = panels([stored(CellRecord.model_validate(values.model_dump()))], [])
    assert scored_by(panel, "accuracy") is panel
    assert at_equal_cost(scored_by(panel, "f1"), "deebert", 2.0).score == 0.6
    assert scored_by(panel, "pearson") is None


def test_the_table_has_the_papers_shape_and_says_what_is_missing(tmp_path):
    comparison = compared(rte_cells(tmp_path))
    table = paper_table(comparison)
    assert table.headings == ("method", "whose", "RTE", "MRPC", "QQP", "SST-2", "QNLI", "MNLI")
    full, ours_full, printed, ours, minus, *_ = table.cells
    assert full == ("BERT-base (full)", "printed", "66.4", "88.9", "71.2", "93.5", "90.5", "84.6")
    assert ours_full[3:] == ("n/a",) * 5
    assert printed[:4] == ("DeeBERT", "printed", "64.3 (-2.1) at 1.95x", "84.4 (-4.5) at 2.07x")
    assert ours[:2] == ("deebert", "ours")
    assert ours[3:] == minus[3:] == ("n/a",) * 5
    assert minus[2].count("[") == 1
    assert "n/a: no records of MRPC, QQP, SST-2, QNLI, MNLI; pabee on RTE; `run it` makes them." in table.notes


def test_conditions_that_differ_have_a_line_each(tmp_path):
    lines = condition_lines(compared(rte_cells(tmp_path)))
    assert [line.partition(":")[0] for line in lines] == [
        "Backbone",
        "Split",
        "Training rows",
        "Test rows",
        "Seeds",
    ]
    assert "theirs BERT-base; ours minilm-l6, 6 layers" in lines[0]
    assert "theirs GLUE test; ours: dev is the test split" in lines[1]
    assert "RTE 1,000 of 2,490" in lines[2]
    assert "RTE 200 of 277" in lines[3]
    assert "full 2" in lines[4]
    saved = compared(rte_cells(tmp_path), table=load_paper("deebert-glue"))
    assert condition_lines(saved)[-1].startswith("Speed-up: theirs time saved")


def test_csv_has_a_line_for_every_printed_point_and_curve(tmp_path):
    lines = paper_lines([compared(rte_cells(tmp_path))])
    rte = next(line for line in lines if line["our task"] == "rte" and line["our method"] == "deebert")
    assert (rte["printed value"], rte["printed speed-up"], rte["their points"]) == ("64.3", "1.95", "-2.10")
    assert float(rte["ours - theirs"]) == pytest.approx(float(rte["our points"]) + 2.1, abs=0.011)
    assert float(rte["our points low"]) < float(rte["our points"]) < float(rte["our points high"])
    assert [line["our score"] for line in lines if line["our task"] == "mrpc"] == ["", ""]


# ---------------------------------------------------------------------------------------------- the schema


def test_faulty_tables_are_refused_by_field(tmp_path):
    with pytest.raises(UserError, match=r"unknown paper table 'pabee-gleu'.*pabee-glue"):
        load_paper("pabee-gleu")
    values = COSEE.model_dump()
    with pytest.raises(ValueError, match="two columns"):
        PaperTable(**values | {"columns": [*values["columns"], values["columns"][0]]})
    path = tmp_path / "mine.yaml"
    for text, fault in (("- a", "mapping"), ("a: [", "not valid YAML"), ("name: x\nscore: 3", "score: Extra inputs")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=fault):
            load_paper(path)


def test_other_backbones_train_as_the_paper_does():
    assert COSEE.setting_for("minilm-l6").suite == "cpu-6-layers"
    assert COSEE.setting_for("bert-base-uncased").suite == "paper-bert-base"
    assert COSEE.setting_for("my/encoder").suite == "paper-bert-base"


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_lists_tables_and_shows_records_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "consistentee-glue" in call("reproduce").output
    write_results(tmp_path / "mine", tasks=("rte", "mnli"))
    shown = call("reproduce", "pabee-glue", "--results", "mine", "--format", "csv")
    assert shown.exit_code == 0, shown.output
    written = (tmp_path / "runs" / "pabee-glue" / "pabee-glue.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(written)))
    assert {line["our task"] for line in lines if line["our score"]} == {"rte", "mnli"}
    assert {line["our backbone"] for line in lines} == {"minilm-l6"}
    assert "unknown table format" in call("reproduce", "consistentee-glue", "--format", "docx").output


def test_without_records_theirs_stand_alone_with_the_command_that_makes_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = call("reproduce", "consistentee-glue", "--format", "md").output
    assert "69.0 (+2.6) at 1.85x" in shown
    assert "consistentee reproduce consistentee-glue --run --backbones minilm-l6 --data DATA" in shown
    asked = call("reproduce", "consistentee-glue", "--backbones", "bert-base-uncased", "--format", "md").output
    assert "consistentee-paper" in asked
    assert "--run --backbones bert-base-uncased --data DATA" in asked


def write_run(folder, labels, seeds=(0,), **settings):
    """Write a made-up suite on RTE, of some labels; ``settings`` tell its protocol from others."""
    write_results(folder, tasks=("rte",), seeds=seeds)
    for place in (folder / "cells" / "rte" / "minilm-l6").iterdir():
        if place.name not in labels:
            shutil.rmtree(place)
    for file in folder.rglob("record.json"):
        record = CellRecord.model_validate_json(file.read_text())
        parts = record.key_parts.model_copy(update={"settings": record.key_parts.settings | settings})
        write_record(file, record.model_copy(update={"key_parts": parts, "command": folder.name}))


def rte_of(*folders):
    """Return the panel of RTE that a table reads of some folders, and what it leaves out."""
    (comparison,), left_out = Reproduction("cosee-glue", COSEE, ["minilm-l6"], folders[0], folders).comparisons()
    return comparison.panels["rte"], list(map(str, left_out))


def test_each_curve_of_several_folders_is_of_the_first_that_has_it(tmp_path):
    mine, stored_ones = tmp_path / "mine", tmp_path / "stored"
    write_run(mine, ["full", "deebert"])
    write_run(stored_ones, ["full", "deebert", "pabee"], seeds=(0, 1))
    for folders, owner in (([mine, stored_ones], "mine"), ([stored_ones, mine], "stored")):
        panel, left_out = rte_of(*folders)
        assert left_out == []
        of = {(cell.record.label, cell.record.seed): cell.record.command for cell in panel.cells}
        assert len(panel.cells) == len(of) == 6
        assert {command for curve, command in of.items() if curve in {("full", 0), ("deebert", 0)}} == {owner}
        assert {of[curve] for curve in (("full", 1), ("deebert", 1), ("pabee", 0), ("pabee", 1))} == {"stored"}


def test_curves_of_another_recipe_are_not_mixed_in_and_that_is_said(tmp_path):
    folders = mine, stored_ones = [tmp_path / "mine", tmp_path / "stored"]
    write_run(mine, ["full", "deebert"], recipe={"epochs": 3})
    write_run(stored_ones, ["full", "pabee"], recipe={"epochs": 6})
    panel, left_out = rte_of(*folders)
    assert {cell.record.command for cell in panel.cells} == {"mine"}
    assert left_out == [f"rte, minilm-l6 of {stored_ones} differs from that of {mine} in recipe"]
    shown = call("reproduce", "cosee-glue", "--results", *folders, "--out", tmp_path / "out", "--format", "csv")
    assert f"left out: {left_out[0]}\n" in shown.stderr
    assert shown.stderr.count("left out") == 1, "once, whatever the number of backbones"


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Replace run_suite and the forecast: keeps what they were called with."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def run_suite(suite, **options):
        seen.append((suite, options))
        return SimpleNamespace(failed=("rte: broken",) if suite.backbones == ("mpnet-base",) else ())

    def plan_lines(suite, **options):
        seen.append((suite, options))
        return [f"would run {len(suite.methods)} methods"]

    monkeypatch.setattr("benchmarks.run.sweep.run_suite", run_suite)
    monkeypatch.setattr("benchmarks.run.dry_run.plan_lines", plan_lines)
    return seen


def test_run_cuts_the_suite_of_each_backbone_to_the_table(runs):
    ended = call("reproduce", "consistentee-glue", "--run", "--backbones", "minilm-l6", "mpnet-base")
    assert ended.exit_code == 1
    assert "failed: rte: broken" in ended.output
    (suite, options), (other, _) = runs
    base = load_suite("cpu-6-layers")
    assert suite.tasks == ("rte", "mrpc", "qqp", "sst2", "qnli", "mnli")
    assert [entry.label for entry in suite.methods] == [
        "full",
        "consistentee-ladder",
        "consistentee-curve",
        "consistentee-distilled",
    ]
    assert (suite.recipe, suite.backbones) == (base.recipe, ("minilm-l6",))
    assert suite.task_overrides == {task: base.task_overrides[task] for task in suite.tasks}
    assert type(suite).model_validate(suite.model_dump(mode="json")) == suite, "it may be run from its own file"
    assert options["out"].as_posix() == "runs/consistentee-glue/minilm-l6"
    assert (other.backbones, other.recipe) == (("mpnet-base",), load_suite("cpu-12-layers").recipe)


def test_dry_run_says_what_run_would_do(runs):
    shown = call("reproduce", "pabee-glue", "--dry-run", "--out", "elsewhere").output
    assert shown.splitlines() == [
        "minilm-l6, as suite cpu-6-layers:",
        "would run 2 methods",
        "mpnet-base, as suite cpu-12-layers:",
        "would run 2 methods",
    ]
    assert {options["out"].parent.name for _, options in runs} == {"elsewhere"}


NOT_RUN = {"cosee-glue": 11}
"""How many cells of a table have no published record: LeeBERT, COSEE, and GPFEE on QNLI and MNLI."""


def test_the_committed_results_stand_beside_all_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in list_papers():
        comparisons, faults = Reproduction.of(name).comparisons()
        assert not faults
        first = comparisons[0]
        assert set(first.panels) == {column.task for column in first.table.columns}, name
        found = [ours for row in first.rows for cell in row.cells.values() for ours in cell.ours.values()]
        cells = sum(len(row.labels) * len(row.cells) for row in first.rows)
        assert len(found) == cells - NOT_RUN.get(name, 0)
        assert all(ours.at.points is not None for ours in found)
        known = [ours for ours in found if ours.interval is not None]
        assert known
        assert all(low <= ours.at.points <= high for ours in known for low, high in [ours.interval])


def test_the_document_shows_what_the_command_prints_today(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "paper_tables.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- consistentee (?P<command>.*) -->\n(?P<output>(?:.*\n)*?)<!-- end -->", text)
    printed = call(*shown["command"].split(), "--out", tmp_path).stdout
    assert shown["output"].strip() == printed.strip(), "copy what the command prints today into the document"
