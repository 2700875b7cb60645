import csv
import io

import pytest
from records_by_hand import LAYERS, made_up_suite, stored, timing, write_results

from benchmarks.analysis import write_all_tables
from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.panels.published import names, published_for, published_results
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.tables.publications.published import published_table
from benchmarks.tasks.loader import list_tasks
from consistentee.errors import UserError
from consistentee.methods.method import available_methods


def panel_of(task):
    cells = made_up_suite(task=task)
    (panel,) = panels([stored(record) for record in cells], [timing(cells, task=task)])
    return panel


def lines_of(task, method):
    table = published_table(panel_of(task))
    return [dict(zip(table.headings, line, strict=True)) for line in table.cells if line[0] == method]


@pytest.mark.parametrize(
    ("column", "mapped", "unmapped"),
    [
        ("method", "methods", "unmapped_methods"),
        ("task", "tasks", "unmapped_tasks"),
        ("table", "splits", None),
        ("speedup_definition", "speedup_definitions", None),
    ],
)
def test_every_printed_name_is_mapped_or_listed_as_unmapped(column, mapped, unmapped):
    printed = {getattr(result, column) for result in published_results()}
    known = set(getattr(names(), mapped))
    left_out = set(getattr(names(), unmapped)) if unmapped else set()
    assert not known & left_out
    assert printed == known | left_out  # nothing forgotten, nothing that is printed nowhere


def test_mapped_tasks_and_methods_are_those_of_this_project():
    assert set(names().tasks.values()) <= set(list_tasks())
    assert set(names().methods.values()) <= set(available_methods())


def test_figures_are_quoted_with_split_backbone_and_meaning_of_speedup():
    (line,) = lines_of("rte", "consistentee")
    assert line["printed"] == "69.0"
    assert line["backbone"] == "BERT-base"
    assert line["split"] == "GLUE test"
    assert line["speed-up"] == "1.85"
    assert line["its definition"] == "layer ratio, L / average"
    assert "COSEE" in line["source"]


def test_ours_is_the_score_at_equal_cost():
    line = lines_of("rte", "deebert")[0]
    ours = at_equal_cost(panel_of("rte"), "deebert", 2.0)
    assert line["ours %"] == f"{100 * ours.score:.1f}"
    assert line["layer ratio"] == f"{LAYERS / ours.layers:.2f}"


def test_what_nobody_published_is_not_available():
    for method in ("consistentee", "deebert", "full"):
        (line,) = lines_of("mcid", method)
        assert [line[name] for name in ("printed", "backbone", "split", "speed-up", "source")] == ["n/a"] * 5
        assert line["ours %"] != "n/a"


def test_a_method_has_a_line_for_each_printed_figure():
    assert len(lines_of("mrpc", "pabee")) == len(published_for("mrpc", "pabee")) >= 4
    assert published_for("mrpc", "oracle") == []


def test_methods_that_were_not_run_follow_with_our_cells_empty():
    line = lines_of("mrpc", "cascade-bert")[0]
    assert line["ours %"] == line["time ratio b1"] == "n/a"
    assert line["split"] == "GLUE dev"


def test_references_that_papers_do_not_have_are_left_out():
    assert lines_of("rte", "oracle") == []
    assert lines_of("rte", "majority") == []


def write_beside(folder, table_format):
    return write_all_tables(folder, table_format, published=True)


def test_written_as_markdown_csv_and_latex(tmp_path):
    write_results(tmp_path, tasks=("mcid", "sst2"))
    assert "COSEE" in write_beside(tmp_path, "md").read_text()
    assert r"\toprule" in write_beside(tmp_path, "latex").read_text()
    lines = list(csv.DictReader(io.StringIO(write_beside(tmp_path, "csv").read_text())))
    assert {line["task"] for line in lines} == {"mcid", "sst2"}
    assert {line["printed"] for line in lines if line["task"] == "mcid"} == {"n/a"}
    with pytest.raises(UserError, match="unknown table format"):
        write_beside(tmp_path, "docx")
