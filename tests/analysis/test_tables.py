"""Tables and their forms: terminal, Markdown, CSV, LaTeX; and the pages of published results."""

import io
import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
from documents import ROOT
from records_by_hand import cell, curve_by_hand, made_up_suite, results_of, timing

from benchmarks.analysis.frames import load_results
from benchmarks.analysis.generation_tables import batch_table
from benchmarks.analysis.promises import chosen_knobs
from benchmarks.analysis.provenance import caveats
from benchmarks.analysis.rendering import Column, Table, display_name, escape_latex, to_latex, to_markdown, write_tables
from benchmarks.analysis.tables import (
    budget_lines,
    headline_csv,
    headline_table,
    page,
    score_table,
    table_against,
    table_named,
    tables_of,
)
from benchmarks.commands.reproduce import (
    PAPER,
    PaperComparison,
    compare,
    list_papers,
    load_paper,
    names,
    paper_table,
    published_results,
)
from consistentee.errors import UserError

FRAME = pd.DataFrame(
    {
        "method": ["calm-softmax", "<b>|x*"],
        "points": [-1.234, 0.04],
        "low": [-2.0, float("nan")],
        "high": [-0.5, float("nan")],
        "mark": ["", "†"],
        "nothing": [None, None],
    }
)
TABLE = Table(
    title="Points & more",
    name="small",
    frame=FRAME,
    columns=[
        Column("method"),
        Column("at 2x", "points", "+.1f", "low", "high", "mark", best=True),
        Column("unknown", "nothing", ".1f"),
    ],
    notes=["50% of it."],
)


def test_cells_have_intervals_and_marks_and_unknown_columns_are_left_out():
    assert TABLE.cells.to_dict("list") == {
        "method": ["calm-softmax", "<b>|x*"],
        "at 2x": ["-1.2 [-2.0, -0.5]", "+0.0†"],
    }


def test_markdown_keeps_text_as_text():
    lines = to_markdown([TABLE]).splitlines()
    assert lines[0] == "## Points &amp; more"
    assert lines[3] == "| --- | ---: |"
    assert lines[5] == r"| &lt;b&gt;\|x\* | +0.0† |"


def test_latex_has_caption_label_bold_best_and_display_names():
    text = to_latex([TABLE])
    for words in (
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\caption{Points \& more. 50\% of it. $^\dagger$: even the cheapest knob costs more than the budget.}",
        r"\label{tab:small}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"\bottomrule",
    ):
        assert words in text
    best = r"CALM (softmax) & \textbf{$-$1.2} {\scriptsize [$-$2.0, $-$0.5]} \\"
    assert best in to_latex([TABLE], "page"), "what is over the budget is never best"
    assert r"CALM (softmax) & \textbf{$-$1.2} \\" in to_latex([TABLE], "column"), "intervals need room"


def test_a_table_that_a_column_cannot_hold_stands_across_the_page(results):
    headline, scores = headline_table(results), score_table(results)
    assert r"\begin{table}" in to_latex([headline])
    assert r"\begin{table*}" in to_latex([headline], "page")
    many = replace(scores, frame=scores.frame.assign(**{f"task {n}": "70.0 @ 1.50x" for n in range(9)}))
    many = replace(many, columns=[*many.columns, *(Column(f"task {n}") for n in range(9))])
    assert r"\begin{table*}" in to_latex([many])
    shown = to_latex([headline]).partition("toprule")[2].partition("\n")[2].partition(r" \\")[0]
    assert shown.split(" & ") == ["method", "at 1.5x", "at 2x", "at 3x"]
    named = to_latex([headline.only(["area", "own last exit 2x"])])
    assert "method & area & own last exit 2x" in named, "columns that are named are shown at any width"
    assert "In brackets" not in named


def test_display_names_are_those_of_the_papers_and_latex_commands_in_data_are_escaped():
    names = {"calm-tokens-softmax": "CALM (softmax)", "token-static": "Static exit", "my-method": "my-method"}
    names["consistentee-held-out-linear"] = "ConsistentEE (held out linear)"
    assert {label: display_name(label) for label in names} == names
    assert escape_latex(r"\x{y} 5% a_b ≤ DE$^3$-BERT $") == r"\textbackslash{}x\{y\} 5\% a\_b $\le$ DE$^3$-BERT \$"


def test_every_budget_of_a_task_has_its_scores_costs_and_knobs(results):
    lines = budget_lines(results)
    full = lines[lines["label"] == "full"]
    assert (full["speedup"] == 1).all(), "the full model stands there once"
    assert full["speedup_b1"].to_numpy() == pytest.approx([1, 1])
    own = lines.query("task == 'mcid' and label == 'deebert' and speedup == 2").iloc[0]
    assert (own["layers"], own["flops_ratio"], own["speedup_b1"]) == pytest.approx((3, 2, 2))
    assert own["seconds_b1"] == pytest.approx(0.008 * 1.02 / 2)
    assert own["low"] < own["points"] < own["high"]
    assert own["knob"].startswith("threshold=0.")


def test_the_page_and_the_csv_of_a_published_folder():
    quick = load_results(ROOT / "results" / "quick")
    text = page(quick)
    assert len(text.splitlines()) <= 100
    for words in ("## movie-snippets", "## Points against the full model", "## Provenance", "| deebert |"):
        assert words in text
    found = pd.read_csv(io.StringIO(headline_csv(quick)))
    assert {"method", "budget", "points", "low", "high", "layers", "seeds", "tasks"} <= set(found)
    met = found[~found["over"] & (found["method"] != "cut")]  # a cut model has one depth
    assert met["layers"].to_numpy() == pytest.approx(6 / met["budget"].to_numpy())
    assert (met["low"] <= met["points"] + 1e-3).all()
    assert (met["points"] <= met["high"] + 1e-3).all()


def test_one_table_with_some_columns_and_the_notes_of_these(results):
    table = table_named(results, "headline").only(["at 3x", "FLOPs 2x"])
    assert list(table.cells) == ["method", "at 3x", "FLOPs 2x"]
    assert "FLOPs, clock" in table.all_notes[-1]
    assert "Own last exit" not in table.all_notes[-1]
    text = to_latex([table])
    assert (text.count(r"\begin{table}"), r"\label{tab:headline}" in text) == (1, True)
    assert list(table.numbers)[:4] == ["method", "points 3x", "low 3x", "high 3x"]
    assert list(table.numbers["points 3x"]) == list(table.frame["points 3x"])


def test_scores_stand_task_by_task_with_the_speed_up_of_what_costs_more():
    late = {"curve": curve_by_hand([4.0, 5.0, 6.0], [0.8, 0.85, 0.9])}
    cells = [
        one
        for task in ("mcid", "rte", "sst2")
        for one in (*made_up_suite(task=task), *([(cell("late", task=task), late)] if task != "sst2" else []))
    ]
    table = score_table(results_of([*cells, (cell("rare"), late)]))
    shown = table.cells.set_index(["at", "method"])
    assert shown.index[0] == ("1x", "full")
    assert shown.loc[("1x", "full")].tolist() == ["91.0"] * 4
    assert shown.loc[("1.5x", "late")].tolist() == ["80.0", "80.0", "n/a", "n/a"]
    assert shown.loc[("2x", "late")].tolist() == ["80.0 @ 1.50x†", "80.0 @ 1.50x†", "n/a", "n/a"]
    assert shown.loc[("2x", "static"), "average"] == "72.5"
    best = [line for line, is_best in zip(shown.index, table.bold("mcid"), strict=True) if is_best]
    assert best == [("1.5x", "consistentee"), ("2x", "consistentee")], "in every block of several lines"
    assert "**80.5** |" in to_markdown([table]).partition("| consistentee | 2x |")[2].partition("\n")[0]
    assert to_latex([table]).count(r"\midrule") == 3
    assert "Ran on fewer than two thirds of the tasks: rare." in table.all_notes


def test_every_table_has_a_name_of_its_own(results, tmp_path):
    names = [table.name for table in tables_of(results)]
    assert names == ["headline", "scores", "tests"]
    assert [path.name for path in write_tables(tables_of(results), tmp_path, "latex")] == [f"{x}.tex" for x in names]
    assert (tmp_path / "tests.tex").read_text().count(r"\end{table}") == 1
    assert [table.name for table in tables_of(results.only(tasks=["rte"]))] == ["headline", "tests", "points"]


@pytest.mark.parametrize(
    ("name", "columns", "sentence"),
    [
        ("headlines", [], "unknown table of these results 'headlines'; did you mean 'headline'"),
        ("x", [], "known: headline, own-layers, points, promises, provenance, scores, tests"),
        ("headline", ["at 4x"], "unknown column of the table headline 'at 4x'; did you mean"),
    ],
)
def test_unknown_tables_and_columns_are_named(results, name, columns, sentence):
    with pytest.raises(UserError, match=sentence):
        table_named(results, name).only(columns)


def test_without_a_full_model_there_is_no_headline(results):
    alone = results.where([record.label in {"deebert", "static"} for record in results.records])
    assert [table.name for table in tables_of(alone)] == ["points"]
    assert table_against(alone, "static") is None
    assert "deebert" in page(alone)


def test_caveats_of_records_and_timings_are_listed(results):
    assert [subject for subject, _ in caveats(results)] == ["dev as test", "few seeds"]
    untimed = results_of(sum((made_up_suite(seed, labels=("full",)) for seed in (1, 2)), made_up_suite()))
    untimed.faults.append("x is damaged")
    assert "few seeds" in dict(caveats(untimed))
    assert [subject for subject, _ in caveats(untimed)][:2] == ["left out", "not timed"]


def test_texts_in_flight_have_a_table():
    cells = made_up_suite(labels=("full", "deebert"))
    record, times = timing(cells)
    in_flight = times[(times["batch_size"] == 32) & (times["timed"] > 0)].assign(batch_size=1, in_flight=32)
    regrouped = record, pd.concat([times, in_flight], ignore_index=True)
    table = batch_table(results_of(cells, [regrouped]))
    assert table is not None
    line = table.cells[table.cells["method"] == "deebert"].iloc[0]
    assert line["batch 1 of 32"] == line["batch 32"].replace("1.00", "4.00"), "a batch of 1 alone takes 4 times as long"
    assert not any(column.startswith("latency") for column in table.cells)
    assert any("of 32 texts in flight, 8 run at a time" in note for note in table.notes)
    assert batch_table(results_of(cells, [(record, times)])) is None


LATEX = shutil.which("pdflatex")
PAGE = r"""\documentclass[10pt,twocolumn]{article}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\setlength{\textwidth}{455pt}\setlength{\columnsep}{17pt}
\begin{document}
TABLES
\end{document}
"""
"""A page with the columns of ACL, 219 points wide."""
needs_latex = pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed (Debian: texlive-latex-recommended)")


@pytest.fixture(scope="module")
def six_layers():
    found = load_results(ROOT / "results" / "cpu-6-layers-float32")
    return found, found.only(["deebert", "pabee", "consistentee-held-out", "static"])


@pytest.mark.slow
@needs_latex
@pytest.mark.parametrize("width", [None, "column", "page"])
def test_latex_compiles_and_nothing_leaves_its_column(six_layers, width, tmp_path):
    found, some = six_layers
    narrow = headline_table(some).only(["at 1.5x", "at 2x", "at 3x"])
    shown = [*tables_of(found), table_against(some, "deebert"), narrow]
    log = compiled(PAGE.replace("TABLES", to_latex(shown, width)), tmp_path)
    assert re.findall(r"^(?:Overfull|!|LaTeX Warning: Ref).*", log, re.MULTILINE) == []


@pytest.mark.slow
@needs_latex
def test_tables_of_a_column_are_readable_there(six_layers, tmp_path):
    """Without shrinking they are at most a fifth too wide, so that letters of 8 points keep 6.7."""
    found, some = six_layers
    text = to_latex([headline_table(found), table_against(some, "deebert")])
    assert text.count(r"\begin{table}") == 2
    text = re.sub(r"\\resizebox\{.*\}\{!\}\{%\n", "{", text)
    log = compiled(PAGE.replace("TABLES", text), tmp_path)
    wider = [float(points) for points in re.findall(r"Overfull \\hbox \((.*?)pt too wide", log)]
    assert all(points < 219 / 5 for points in wider), wider


def compiled(source, folder):
    (folder / "page.tex").write_text(source, encoding="utf-8")
    command = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "page.pdf").stat().st_size > 10_000
    return (folder / "page.log").read_text(encoding="latin-1")


def test_the_split_of_every_table_and_the_meaning_of_every_speed_up_are_known():
    found, mapping = published_results(), names()
    assert set(found["table"]) == set(mapping["splits"])
    assert set(found["speedup_definition"]) == set(mapping["speedup_definitions"])


@pytest.mark.parametrize("name", list_papers())
def test_papers_without_our_records_show_what_is_printed(name):
    table = load_paper(name)
    comparison = PaperComparison(table, "minilm-l6", None, table.labels, "consistentee reproduce it")
    assert compare(comparison)["score"].isna().all()
    shown = paper_table(comparison)
    assert PAPER in set(shown.cells["whose"])
    assert any("`consistentee reproduce it` makes them" in note for note in shown.notes)


def test_a_method_of_a_paper_has_its_line_and_ours_at_the_printed_speed_up():
    cells = [
        (record.model_copy(update={"label": "consistentee-paper"}) if record.label == "deebert" else record, frames)
        for record, frames in [*made_up_suite(task="rte"), *made_up_suite(task="mcid")]
    ]
    glue = load_paper("consistentee-glue")
    comparison = PaperComparison(glue, "minilm-l6", results_of(cells), ("consistentee-paper",), "run it")
    found = compare(comparison)
    ours = found[found["our_task"] == "rte"].iloc[0]
    assert ours["spent"] == pytest.approx(1.85)
    assert ours["our_points"] == pytest.approx(ours["score"] - 0.91)
    table = paper_table(comparison)
    lines = table.cells.set_index(["method", "whose"])
    assert list(lines.index) == [
        ("BERT-base (full)", PAPER),
        ("full", "ours"),
        ("ConsistentEE", PAPER),
        ("consistentee-paper", "ours"),
        ("consistentee-paper", "ours, no loss"),
    ]
    assert lines["RTE"].tolist()[:-1] == ["66.4", "91.0", "69.0 @ 1.85x", f"{100 * ours['score']:.1f} @ 1.85x"]
    chosen = chosen_knobs(results_of(cells), 0.0).query("task == 'rte' and label == 'consistentee-paper'").iloc[0]
    assert lines["RTE"].iloc[-1] == f"{chosen['promised']:.2f}x, {-chosen['lost']:+.1f}"
    assert lines["QNLI"].tolist() == ["90.5", "n/a", "89.9 @ 1.72x", "n/a", "n/a"], "that task has no records yet"
    assert "Paper: BERT-base, GLUE test; ours: minilm-l6" in table.title
    missing = "consistentee-paper on MRPC, QQP, SST-2, QNLI, MNLI"
    assert table.notes[0] == f"n/a: no records of {missing}; `run it` makes them."
    assert {"Speed-up", "Quoted from"} <= {note.partition(":")[0] for note in table.notes}


def test_a_paper_that_prints_points_has_points_of_ours(results):
    comparison = PaperComparison(load_paper("deebert-glue"), "minilm-l6", results, ("deebert",), "")
    found, shown = compare(comparison), paper_table(comparison).cells
    ours = found[(found["our_task"] == "rte") & (found["number"] == 1)].iloc[0]
    expected = f"{100 * ours['our_points']:+.1f} @ {ours['speedup']:.2f}x"
    assert shown.loc[shown["method"] == "deebert", "RTE"].iloc[0] == expected
