import csv
import io

import numpy as np
import pytest
from records_by_hand import (
    LAYERS,
    ROWS,
    cell,
    contender,
    made_up_suite,
    operating_point,
    stored,
    timing,
    write_results,
)
from rich.console import Console

from benchmarks.analysis import report_files, terminal_report, write_all_tables
from benchmarks.analysis.comparisons.curve_summaries import curve_summaries
from benchmarks.analysis.panels.results import load_panels, panels
from benchmarks.analysis.rows.base import mean_and_std
from benchmarks.analysis.rows.instances import label_rows, table_rows
from benchmarks.analysis.tables.operating import operating_lines, operating_table
from benchmarks.analysis.tables.provenance import machine, machines_table
from benchmarks.analysis.tables.text import TextTable, csv_of, escape_latex, to_latex, to_markdown
from benchmarks.specs.targets import HALF, in_words
from consistentee.errors import UserError


def panel_of(records, timings=()):
    (panel,) = panels([stored(record) for record in records], list(timings))
    return panel


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


def printed(renderable):
    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_full_model_is_first_and_the_references_are_last():
    rows = table_rows(panel_of(made_up_suite()))
    labels = list(dict.fromkeys(row.label for row in rows))
    assert labels[0] == "full"
    assert labels[-4:] == ["static", "random", "oracle", "majority"]
    assert labels[1:-4] == sorted(labels[1:-4])


def test_seeds_whose_histograms_differ_in_length_are_added_up():
    """The companion of a cascade may be chosen among several depths, for each seed on its own."""
    points = []
    for histogram in ([0, 100, 0, 0, 0, 0, 0, 100], [100, 0, 0, 0, 0, 0, 100]):
        point = operating_point(0.5, "budget 1.00", 3.0, 0.8)
        side = point.test.model_copy(update={"exit_histogram": histogram})
        points.append(point.model_copy(update={"validation": side, "test": side}))
    cells = [cell("cascade-bert", [point], seed=seed) for seed, point in enumerate(points)]
    (row,) = label_rows(panel_of(cells), "cascade-bert")
    assert row.speedups.average_layers == (2 + 8 + 1 + 7) / 4
    assert row.speedups.saved_fraction == 1 - 4.5 / LAYERS


def test_the_full_model_is_timed_as_the_stock_model():
    cells = made_up_suite()
    panel = panel_of(cells, [timing(cells)])
    full = table_rows(panel)[0]
    assert full.speedups.time_ratios == {1: 1.0, 32: 1.0}
    assert full.clocks[1].milliseconds == pytest.approx(8.0 * 1.02)  # the median of 3 rounds
    assert full.clocks[1].spread == pytest.approx(0.04 / 1.02)


def test_real_speedup_is_that_of_the_same_rounds():
    record = cell("deebert", [operating_point(0.5, "budget 0.50", 3.0, 0.8)])
    slow = timing([record])
    (row,) = label_rows(panel_of([record], [slow]), "deebert")
    assert row.speedups.time_ratios == pytest.approx({1: 2.0, 32: 2.0})
    assert row.speedups.flops_ratio == pytest.approx(2.0)
    assert row.clocks[32].milliseconds == pytest.approx(1.02)
    assert row.clocks[32].p90 == pytest.approx(1.04)


def test_each_timing_is_compared_with_its_own_stock_model():
    first, later = (cell(label, [operating_point(0.5, "budget 0.50", 3.0, 0.8)]) for label in ("deebert", "pabee"))
    slow = timing([later])
    samples = [[s.model_copy(update={"seconds_per_round": [9.0] * 3}) for s in c.samples] for c in slow.contenders]
    contenders = [c.model_copy(update={"samples": s}) for c, s in zip(slow.contenders, samples, strict=True)]
    panel = panel_of([first, later], [timing([first]), slow.model_copy(update={"contenders": contenders})])
    assert label_rows(panel, "deebert")[0].speedups.time_ratios == pytest.approx({1: 2.0, 32: 2.0})
    assert label_rows(panel, "pabee")[0].speedups.time_ratios == pytest.approx({1: 1.0, 32: 1.0})


def test_times_are_of_the_seeds_that_were_timed_and_the_note_says_so():
    cells = [cell("deebert", [operating_point(0.5, "budget 0.50", 3.0, 0.8)], seed=seed) for seed in (0, 1)]
    panel = panel_of(cells, [timing(cells[1:], seed=1)])
    (row,) = label_rows(panel, "deebert")
    assert (row.seeds, row.timed_seeds) == ((0, 1), (1,))
    assert row.speedups.time_ratios == pytest.approx({1: 2.0, 32: 2.0})
    assert "; of seed 1 alone: deebert; " in " ".join(operating_table(panel).notes)


def test_the_note_tells_of_every_timing():
    first, later = (cell(label, [operating_point(0.5, "budget 0.50", 3.0, 0.8)]) for label in ("deebert", "pabee"))
    loads = [{"environment_before": {"load_average": [load, 0, 0]}} for load in (0.5, 2.1)]
    more = timing([later]).model_copy(update={"rounds": 5} | loads[1])
    notes = " ".join(
        operating_table(panel_of([first, later], [timing([first]).model_copy(update=loads[0]), more])).notes
    )
    assert "medians of 3 to 5 rounds" in notes
    assert "the stock model in each of 2 timings" in notes
    assert "Load average before: 0.5 to 2.1." in notes
    alone = " ".join(operating_table(panel_of([first], [more])).notes)
    assert "medians of 5 rounds" in alone
    assert "spread, (slowest - fastest round) / median, at most" in notes
    assert "spread" not in alone  # it timed another method's points
    assert "timings" not in alone


def test_equal_choices_share_a_row():
    record = cell(
        "pabee",
        [
            operating_point(1, "budget 0.25", 1.5, 0.6),
            operating_point(2, "budget 0.50, budget 0.75, within 1 point", 3, 0.9),
        ],
    )
    rows = label_rows(panel_of([record]), "pabee")
    assert [in_words(row.targets) for row in rows] == ["budget 0.25", "budget 0.50, budget 0.75, within 1 point"]


def test_seeds_are_averaged():
    cells = [
        cell("deebert", [operating_point(0.5, "budget 0.50", 3.0, 0.80)], seed=0),
        cell("deebert", [operating_point(0.7, "budget 0.50", 2.0, 0.90)], seed=1),
    ]
    (row,) = label_rows(panel_of(cells), "deebert")
    assert row.seeds == (0, 1)
    assert row.scores["accuracy"] == pytest.approx(0.85)
    assert row.score_std == pytest.approx(0.0707, abs=1e-4)
    assert row.speedups.average_layers == pytest.approx(2.5)
    table = operating_table(panel_of(cells))
    assert table.cells[0][1] == "threshold=0.5 to 0.7"
    assert table.cells[0][2] == "85.0 ± 7.1 [82.0, 88.0]"


def test_a_grid_names_the_parameter_that_was_chosen():
    cells = [
        cell("consistentee", [operating_point(0.5, "budget 0.50", 3.0, score)], parameters={"alpha": alpha, "k": 8})
        for alpha, score in ((0.01, 0.7), (0.1, 0.8))
    ]
    (row,) = operating_table(panel_of(cells)).cells
    assert row[1] == "threshold=0.5 · alpha=0.1"


def test_missing_times_show_as_not_available():
    cells = made_up_suite()
    table = operating_table(panel_of(cells))
    assert table.headings[6:10] == ("ms/row b1", "ms/row b32", "speed-up b1", "speed-up b32")
    assert set(table.cells[1][6:10]) == {"n/a"}
    assert "Not timed." in table.notes


def test_a_point_without_its_stock_model_has_no_speedup():
    record = cell("deebert", [operating_point(0.5, "budget 0.50", 3.0, 0.8)])
    alone = timing([record]).model_copy(update={"contenders": [contender(record.key, "deebert", 0.5, 0.5)]})
    (row,) = label_rows(panel_of([record], [alone]), "deebert")
    assert row.speedups.time_ratios == {}


def test_notes_say_what_a_reader_must_know():
    cells = made_up_suite()
    notes = " ".join(operating_table(panel_of(cells, [timing(cells)])).notes)
    for phrase in (
        "chosen on validation data",
        "reported on the test split",
        f"{ROWS} test rows",
        "seed 0",
        "Made-up CPU",
        "spread",
        "at most 4% at batch 1",
        "dev is the test split",
        "Never-exit engine / stock: 1.00 at batch 1",
        "differ in 0 of",
    ):
        assert phrase in notes


def test_machine_of_an_empty_environment():
    assert machine({}) == "not recorded"
    assert machine({"cpu": "X", "gpus": ["G"], "commit": "a" * 40, "uncommitted_changes": True}) == (
        f"G, X, commit {'a' * 10} with changes"
    )


def test_summaries_rank_the_made_up_methods():
    summaries = {summary.label: summary for summary in curve_summaries(panel_of(made_up_suite()))}
    assert "full" not in summaries
    assert summaries["oracle"].layers_area > summaries["consistentee"].layers_area > summaries["deebert"].layers_area
    assert summaries["majority"].layers_within is None
    assert 1 <= summaries["consistentee"].layers_within < summaries["deebert"].layers_within <= LAYERS
    assert summaries["consistentee"].time_area is None


def test_mean_and_std():
    assert mean_and_std([0.5]) == (0.5, None)
    mean, deviation = mean_and_std([0.4, 0.6])
    assert mean == pytest.approx(0.5)
    assert deviation == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_whole_curves_are_read_at_fixed_shares_of_the_layers():
    summaries = {summary.label: summary for summary in curve_summaries(panel_of(made_up_suite()))}
    scores = summaries["deebert"].at_budgets
    assert list(scores) == [0.25, 1 / 3, 0.5, 0.75]
    assert list(scores.values()) == sorted(scores.values())
    assert summaries["deebert"].flops_area is not None
    late = cell("late", [operating_point(0.5, "within 1 point", 5.0, 0.9)])
    (alone,) = curve_summaries(panel_of([late]))
    assert set(alone.at_budgets.values()) == {None}


def test_several_seeds_have_an_interval_over_rows_and_seeds(tmp_path):
    write_results(tmp_path, seeds=(0, 1, 2))
    (panel,), _ = load_panels(tmp_path)
    half = next(row for row in label_rows(panel, "deebert") if HALF in row.targets)
    assert half.seeds == (0, 1, 2)
    low, high = half.interval
    assert low < half.scores["accuracy"] < high
    assert (low, high) != half.choices[0].point.score_interval
    half.choices[0].cell.rows.file.unlink()
    fresh, _ = load_panels(tmp_path)
    row = next(row for row in label_rows(fresh[0], "deebert") if HALF in row.targets)
    assert row.interval == pytest.approx(row.choices[0].point.score_interval)


def test_csv_keeps_raw_numbers(results):
    (panel,), _ = load_panels(results)
    lines = list(csv.DictReader(io.StringIO(csv_of(operating_lines([panel])))))
    assert len(lines) == len(table_rows(panel))
    assert lines[0]["label"] == "full"
    half = next(line for line in lines if line["label"] == "deebert" and line["chosen_for"] == "budget 0.50")
    assert float(half["average_layers"]) == pytest.approx(3.0)
    assert float(half["speedup_b32"]) == pytest.approx(2.0)
    oracle = next(line for line in lines if line["label"] == "oracle")
    assert oracle["ms_b1"] == ""


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("md", "table.md"),
        ("csv", "table.csv"),
        ("latex", "table.tex"),
        ("all", "table-all.md"),
        ("long", "table-long.csv"),
    ],
)
def test_write_table(results, name, file):
    path = write_all_tables(results, name)
    assert path.name == file
    assert "consistentee" in path.read_text()


def test_unknown_format(results):
    with pytest.raises(UserError, match="did you mean 'latex'"):
        write_all_tables(results, "latx")


def test_report_files_and_terminal(results):
    shown = printed(report_files(results))
    assert {"table.md", "table.csv", "curves.png"} <= {path.name for path in results.iterdir()}
    assert "at equal cost" in shown
    assert "full (stock)" in printed(terminal_report(results))


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        terminal_report(tmp_path)


def test_a_damaged_record_is_named_and_left_out(tmp_path):
    write_results(tmp_path)
    damaged = tmp_path / "cells" / "mcid" / "minilm-l6" / "pabee" / "default" / "seed0" / "record.json"
    damaged.write_text("{")
    shown = printed(terminal_report(tmp_path))
    assert "left out" in shown
    assert "pabee" in shown.replace("\n", "").split("left out")[1]


def test_text_from_data_stays_text():
    table = TextTable("a|b", ("x_1",), (("50% & <script>",), ("[bold]{y}[/bold]",)), ("note *1*",), ("x_1",))
    markdown = to_markdown([table])
    assert r"a\|b" in markdown
    assert "&lt;script&gt;" in markdown
    assert r"\*1\*" in markdown
    latex = to_latex([table])
    assert r"50\% \& $<$script$>$" in latex
    assert r"\begin{tabular}{l}" in latex
    assert escape_latex("a_b^c\\") == r"a\_b\textasciicircum{}c\textbackslash{}"


def test_latex_is_ascii_whatever_signs_tables_have(results, tmp_path):
    assert escape_latex("90% ≥ 50% † ‡ x|y") == r"90\% $\ge$ 50\% $\dagger$ $\ddagger$ x$|$y"
    write_results(tmp_path, tasks=("mcid", "rte"), seeds=(0, 1))
    for folder in (results, tmp_path):
        assert write_all_tables(folder, "latex").read_text().isascii()
        assert write_all_tables(folder, "latex", published=True).read_text().isascii()


def test_the_terminal_says_in_few_words_what_a_knob_was_chosen_for():
    points = [operating_point(1, "budget 0.25, budget 0.50, within 1 point", 1.5, 0.6)]
    panel = panel_of([cell("pabee", points)])
    assert operating_table(panel, compact=True).cells[0][-1] == "≤25%, ≤50%, -1 pt"
    assert operating_table(panel).cells[0][-1] == "budget 0.25, 0.50; within 1 point"


def test_further_metrics_are_in_files_and_not_on_the_terminal():
    point = operating_point(1, "budget 0.25", 1.5, 0.6)
    scores = {"accuracy": 0.6, "f1": 0.7}
    point = point.model_copy(update={"test": point.test.model_copy(update={"scores": scores})})
    panel = panel_of([cell("pabee", [point])])
    assert "f1 %" in operating_table(panel).headings
    assert "f1 %" not in operating_table(panel, compact=True).headings


@pytest.mark.parametrize("tasks", [("mcid",), ("mcid", "sst2", "mrpc", "rte")])
def test_the_page_is_short_and_says_where_the_rest_is(tmp_path, tasks):
    write_results(tmp_path, tasks=tasks)
    text = write_all_tables(tmp_path, "md").read_text()
    assert len(text.splitlines()) <= 120
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert "at equal cost" in titles[0] or "at 2x" in titles[0]
    assert titles[-1] == "## Provenance"
    assert "Made-up CPU" in text
    assert "--format all" in text
    everything = write_all_tables(tmp_path, "all").read_text()
    assert all(title in everything for title in titles[:-1])


def test_the_long_table_has_a_line_for_every_cell_knob_and_split(results):
    found, _ = load_panels(results)
    lines = list(csv.DictReader(write_all_tables(results, "long").open()))
    records = [cell.record for panel in found for cell in panel.cells]
    assert len(lines) == sum(len(record.curve_validation) + len(record.curve_test) for record in records)
    at_points = [line for line in lines if line["point"]]
    assert {line["split"] for line in at_points} == {"test"}
    half = next(line for line in at_points if line["label"] == "deebert" and line["targets"] == "budget 0.50")
    assert (float(half["layers"]), float(half["flops_ratio"])) == (pytest.approx(3.0), pytest.approx(2.0))
    assert float(half["speedup_b32"]) == pytest.approx(2.0)


def test_a_task_whose_methods_were_trained_in_two_precisions_is_named():
    records = [
        cell(label, [operating_point(0.5, "budget 0.50", 2.0, 0.5)], task="sst2") for label in ("deebert", "pabee")
    ]
    precisions = {"same": ("bfloat16", "bfloat16"), "mixed": ("float32", "bfloat16"), "older": (None, "bfloat16")}
    notes = {
        name: machines_table(
            [
                record.model_copy(update={"training_precision": precision})
                for record, precision in zip(records, of_both, strict=True)
            ]
        ).notes
        for name, of_both in precisions.items()
    }
    assert len(notes["same"]) == len(notes["older"]) == 1
    assert notes["mixed"][1] == "Trained in float32 and in bfloat16, by what was faster: records of sst2 · minilm-l6."
