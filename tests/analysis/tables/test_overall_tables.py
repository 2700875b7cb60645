"""Over all tasks: gains over static exits at equal cost, and the clock against the layers."""

import pytest
from records_by_hand import cell, made_up_suite, operating_point, stored, timing

from benchmarks.analysis.comparisons.real_time import clock_summary
from benchmarks.analysis.figures.gains import gains_figure
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.tables.overall import clock_table, overall_tables, static_gain_table


def suite(tasks=("mcid", "rte")):
    found = []
    for task in tasks:
        records = made_up_suite(task=task)
        found += panels([stored(record) for record in records], [timing(records, task=task)])
    return found


def test_gains_as_a_table():
    table = static_gain_table(suite())
    assert table is not None
    assert table.headings == ("method", "mcid", "rte", "mean", "above / below")
    assert table.title == "Points over a static exit at 2x, task by task"
    rows = {row[0]: row[1:] for row in table.cells}
    assert {"full", "static", "majority"}.isdisjoint(rows)
    assert rows["consistentee"][0] == rows["consistentee"][2]  # the same on both tasks
    assert float(rows["consistentee"][2]) > 0 > float(rows["random"][2])
    assert rows["consistentee"][3] == "0 / 0"  # predictions were not kept: no interval, no star


def test_gains_as_a_figure_best_mean_first():
    figure = gains_figure(suite())
    assert figure is not None
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    table = static_gain_table(suite())
    assert table is not None
    means = {row[0]: float(row[-2]) for row in table.cells if row[0] != "oracle"}
    assert rows == sorted(means, key=lambda label: -means[label])
    assert next(label.get_text() for label in figure.axes[0].get_xticklabels()) == "mean"
    without = panels([stored(cell("full", [operating_point(6, "within 1 point", 6.0, 0.9)]))], [])
    assert gains_figure(without) is None


def test_clock_summary_by_hand():
    summary = clock_summary([("a", 1.0, 1.0), ("a", 2.0, 1.0), ("b", 4.0, 1.0)])
    assert summary is not None
    assert (summary.points, summary.kept) == (3, 0.5)
    assert summary.correlation is None
    rising = clock_summary([("a", 1.0, 0.9), ("a", 2.0, 1.5), ("b", 4.0, 1.4)])
    assert rising is not None
    assert rising.correlation == pytest.approx(0.5)
    assert clock_summary([]) is None


def test_clock_as_a_table():
    table = clock_table(suite())
    assert table is not None
    assert table.headings[:3] == ("method", "points", "kept b1")
    assert table.cells[0][0] == "all"
    assert {row[2] for row in table.cells} == {"1.00"}  # the made-up clock follows the layers
    untimed = [panels([stored(record) for record in made_up_suite()], [])[0]]
    assert clock_table(untimed) is None


def test_all_tables_over_tasks():
    assert [table.title.split(" · ")[0] for table in overall_tables(suite())] == [
        "Ranks over 2 tasks",
        "Ranks over 2 tasks",
        "Points over a static exit at 2x, task by task",
        "Measured speed-up and layers",
    ]
