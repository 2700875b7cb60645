"""The headline tables, by hand, and that the documents show the committed ones."""

import pytest
from records_by_hand import made_up_suite, stored, timing
from shown_tables import FIRST_ROWS, with_its_tables

from benchmarks.analysis.comparisons.ranking import AREA, compared_panels, score_table
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.tables.equal_cost import equal_cost_tables, headline_tables
from benchmarks.analysis.tables.overall import static_gain_table


def suite(tasks=("mcid", "rte"), regression=()):
    found = []
    for task in (*tasks, *regression):
        records = made_up_suite(task=task)
        if task in regression:
            records = [record for record in records if record.label in ("full", "static", "consistentee")]
        found += panels([stored(record) for record in records], [timing(records, task=task)])
    return found


def test_one_task_has_no_means():
    assert [table.title for table in headline_tables(suite(("mcid",)))] == [
        "Points against the full model at 2x, task by task"
    ]


def test_a_task_that_most_methods_lack_is_shown_and_not_counted():
    found = suite(regression=("stsb",))
    assert [panel.task for panel in compared_panels(found)] == ["mcid", "rte"]
    means, by_task, *_ = headline_tables(found)
    assert means.title.endswith("mean of 2 tasks")
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
