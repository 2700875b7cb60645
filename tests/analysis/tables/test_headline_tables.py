"""The headline tables, by hand, and that the documents show the committed ones."""

import pytest
from records_by_hand import cell, made_up_suite, operating_point, stored, timing
from shown_tables import FIRST_ROWS, with_its_tables

from benchmarks.analysis.comparisons.ranking import AREA, compared_panels, score_table
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.rows.instances import row_for_half
from benchmarks.analysis.tables.equal_cost import equal_cost_tables
from benchmarks.analysis.tables.headline import half_table, headline_table, headline_tables
from benchmarks.analysis.tables.overall import static_gain_table


def suite(tasks=("mcid", "rte"), regression=()):
    found = []
    for task in (*tasks, *regression):
        records = made_up_suite(task=task)
        if task in regression:
            records = [record for record in records if record.label in ("full", "static", "consistentee")]
        found += panels([stored(record) for record in records], [timing(records, task=task)])
    return found


def test_one_row_a_method_the_full_model_first_then_by_gain():
    table = headline_table(suite())
    labels = [row[0] for row in table.cells]
    assert labels[0] == "full"
    assert {"oracle", "majority"}.isdisjoint(labels)
    gains = [float(row[-2]) for row in table.cells[1:]]
    assert gains == sorted(gains, reverse=True)
    assert dict(zip(labels[1:], gains, strict=True))["static"] == 0


def test_means_over_tasks_by_hand():
    found = suite()
    row = row_for_half(found[0], "consistentee")
    assert row is not None
    cells = {cells[0]: cells for cells in headline_table(found).cells}["consistentee"]
    assert cells[1] == f"{100 * row.scores['accuracy']:.1f}"  # the same on both tasks
    assert cells[2] == f"{100 * row.speedups.saved_fraction:.0f}"
    assert cells[3] == f"{row.speedups.time_ratios[1]:.2f}"
    by_task = {cells[0]: cells[1:] for cells in half_table(found).cells}["consistentee"]
    assert by_task == (f"{cells[1]} at {row.speedups.average_layers:.1f}",) * 2


def test_means_differ_from_a_task_and_speedup_is_the_geometric_one():
    found = []
    for task, layers, score in (("mcid", 2.0, 0.8), ("rte", 3.0, 0.6)):
        methods = {"full": operating_point(1, "within 1 point", 6.0, 0.9)}
        methods["deebert"] = operating_point(0.5, "budget 0.50", layers, score)
        records = [cell(label, [point], task=task) for label, point in methods.items()]
        found += panels([stored(record) for record in records], [timing(records, task=task)])
    row = {cells[0]: cells for cells in headline_table(found).cells}["deebert"]
    assert row[1:4] == ("70.0", "58", "2.45")  # the made-up clock follows the layers: sqrt(3 * 2)


def test_untimed_tasks_have_no_speedup():
    untimed = panels([stored(record) for task in ("mcid", "rte") for record in made_up_suite(task=task)], [])
    assert headline_table(untimed).headings[:4] == ("method", "score %", "layers saved %", "points over static")


def test_one_task_has_no_means():
    assert [table.title for table in headline_tables(suite(("mcid",)))] == [
        "Points against the full model at 2x, task by task"
    ]


def test_a_task_that_most_methods_lack_is_shown_and_not_counted():
    found = suite(regression=("stsb",))
    assert [panel.task for panel in compared_panels(found)] == ["mcid", "rte"]
    *at_equal_cost, headline, by_task = headline_tables(found)
    assert at_equal_cost[1].headings[1:] == ("mcid", "rte", "stsb")
    assert headline.title.startswith("Means over 2 tasks")
    assert by_task.headings == ("method", "mcid", "rte", "stsb")
    assert {row[0]: row[3] for row in by_task.cells}["deebert"] == "n/a"
    scores = score_table(found, AREA)
    assert (len(scores.blocks), scores.left_out) == (2, ())
    assert [name.split(" · ")[0] for name in scores.blocks_left_out] == ["stsb"]
    gains = static_gain_table(found)
    assert gains is not None
    assert all(row[-2] != "n/a" for row in gains.cells)
    assert "The mean leaves out stsb" in gains.notes[-1]


def test_seeds_are_told_where_methods_have_unequally_many():
    def of(once: tuple[str, ...]):
        found = []
        for task in ("mcid", "rte"):
            records = [*made_up_suite(task=task), *made_up_suite(seed=1, task=task)]
            kept = [record for record in records if record.seed == 0 or record.label not in once]
            found += panels([stored(record) for record in kept], [])
        return equal_cost_tables(found)[0]

    assert "seeds" not in of(once=()).headings
    table = of(once=("deebert",))
    place = table.headings.index("seeds")
    seeds = {row[0]: row[place] for row in table.cells}
    assert {label for label, number in seeds.items() if number == "1"} == {"deebert"}
    assert set(seeds.values()) == {"1", "2"}


@pytest.mark.parametrize("document", FIRST_ROWS)
def test_documents_show_the_tables_that_the_records_give(document):
    said, today = with_its_tables(document)
    assert said == today, "write them anew: python tests/shown_tables.py"
