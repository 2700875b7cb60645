"""Tables and figures of generation, from records made up from a few numbers."""

import csv
import io
import json
import re

import numpy as np
import pytest
from documents import ROOT
from generation_by_hand import (
    EXITS,
    LAYERS,
    STOCK_SECONDS,
    decoding_point,
    generation_cell,
    made_up_generation,
    match_at,
    study,
    write_generation,
)
from matplotlib.image import imread
from records_by_hand import write_results

from benchmarks.analysis import terminal_report, write_all_figures, write_all_tables, write_html
from benchmarks.analysis.figures.generation import layers_by_position, row_near_half
from benchmarks.analysis.leaderboard.board import load_leaderboard
from benchmarks.analysis.panels.results import load_panels, panels
from benchmarks.analysis.rows.texts import STOCK, curve_rows, generation_rows, load_generation_panels
from benchmarks.analysis.tables.generation.decoding import (
    calibration_table,
    decoding_lines,
    decoding_table,
)
from benchmarks.analysis.tables.generation.decoding_cost import text_cost_tables
from benchmarks.analysis.tables.text import csv_of
from benchmarks.specs.targets import HALF, in_words
from benchmarks.store.stored_results import BaseStoredCell, CellFolder, kind_of_results
from consistentee.errors import UserError


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_generation(folder)
    return folder


@pytest.fixture(scope="module")
def panel(results):
    (found,), faults = load_generation_panels(results)
    assert faults == []
    return found


def rows_of(table):
    return [dict(zip(table.headings, cells, strict=True)) for cells in table.cells]


def row_of(table, method):
    return next(row for row in rows_of(table) if row["method"] == method)


def panel_of(cells, folder):
    (found,) = panels([BaseStoredCell(cell, CellFolder(folder)) for cell in cells], [])
    return found


def test_main_table_tells_scores_layers_and_times(panel):
    table = decoding_table(panel)
    stock = row_of(table, STOCK)
    assert stock["ROUGE-L % [95%]"] == "30.0 [28.0, 32.0]"
    assert (stock["match %"], stock["layers"], stock["saved %"]) == ("100.0", "30.00", "0.0")
    assert (stock["decode speed-up b1"], stock["decode speed-up b8"]) == ("1.00", "1.00")
    # The median round takes 1.02 of the first one.
    assert float(stock["tokens/s b1"]) == pytest.approx(1 / (1.02 * STOCK_SECONDS), abs=0.05)
    static = row_of(table, "token-static")
    assert (static["knob"], static["layers"], static["saved %"]) == ("threshold=0.2", "6.00", "80.0")
    assert (static["FLOPs ratio"], static["decode speed-up b1"]) == ("5.00", "5.00")
    assert static["chosen for"] == "≤33%"
    assert row_of(table, "token-full")["chosen for"] == "as full ≥90%"
    drafted = row_of(table, "layerskip")
    assert "60% of drafts accepted" in drafted["knob"]
    assert drafted["layers"] == "21.00"


def test_order_is_stock_full_competitors_references(panel):
    labels = list(dict.fromkeys(row.label for row in generation_rows(panel)))
    competing = ["calm-tokens-softmax", "calm-tokens-state", "consistentee-tokens", "layerskip"]
    assert labels == [STOCK, "token-full", *competing, "token-static", "token-random"]


def test_notes_say_how_it_was_measured(panel):
    notes = " ".join(decoding_table(panel).notes)
    for words in (
        "chosen on validation prompts and reported on test prompts",
        "3 cut to 256 tokens",
        f"exits after layers {', '.join(map(str, EXITS))}",
        "first tokens and the reading of prompts apart",
        "stock generate reads prompts in 50 ms a prompt at batch 1",
        "layer calls a token",
        "Made-up CPU",
        "a subset of the original",
    ):
        assert words in notes


def test_notes_name_the_closing_layers(tmp_path):
    cells = [record.model_copy(update={"closing_layers": 2}) for record in made_up_generation()]
    assert "layers, the last 2 among them" in " ".join(decoding_table(panel_of(cells, tmp_path)).notes)


def test_best_of_a_grid_is_chosen_on_validation(tmp_path):
    worse = decoding_point(0.5, "budget 0.50", 14, 0.5)
    better = decoding_point(0.4, "budget 0.50", 13, 0.6)
    lucky = better.model_copy(update={"scores": {"rougeL": worse.scores["rougeL"]}})
    too_deep = decoding_point(0.9, "budget 0.80", 24, 0.9)
    cells = [
        generation_cell("calm", [worse], parameters={"tau": 0}),
        generation_cell("calm", [lucky, too_deep], parameters={"tau": 4}),
    ]
    by_reason = {in_words(row.targets): row for row in curve_rows(panel_of(cells, tmp_path), "calm")}
    assert by_reason["budget 0.50"].knobs == (0.4,)
    assert by_reason["budget 0.50"].parameters == ("tau=4",)
    assert by_reason["budget 0.80"].knobs == (0.9,)


def test_seeds_are_averaged_and_their_spread_is_told(tmp_path):
    cells = [
        generation_cell("calm", [decoding_point(0.4, "budget 0.50", 12 + seed, 0.5 + 0.1 * seed)], seed=seed)
        for seed in (0, 1)
    ]
    (row,) = curve_rows(panel_of(cells, tmp_path), "calm")
    assert row.speedups.average_layers == 12.5
    assert row.token_match.value == pytest.approx(0.55)
    assert row.score_std == pytest.approx(np.std([0.15, 0.18], ddof=1))
    assert row.clocks == {}


def test_gains_over_static_exits_are_shown_at_equal_cost(panel):
    table = next(table for table in text_cost_tables([panel]) if table.title.startswith("Points over a static exit"))
    gains = {row["method"]: row[panel.task] for row in rows_of(table)}
    assert {"token-full", "token-static"}.isdisjoint(gains)
    better, worse = (float(gains[label].rstrip("*†‡")) for label in ("consistentee-tokens", "calm-tokens-state"))
    assert better > 0 > worse


def test_calibration_table_says_which_promises_were_kept(panel):
    first, second = rows_of(calibration_table(panel))
    assert (first["delta"], first["broken %"], first["allowed %"], first["kept"]) == ("0.1", "4", "10", "yes")
    assert (second["delta"], second["kept"]) == ("0.25", "no")
    results = [result.model_copy(update={"mean_lambda": 1.0}) for result in study().results]
    cautious = study().model_copy(update={"results": results})
    table = calibration_table(panel_of([generation_cell("calm", [], calibration=cautious)], panel.cells[0].rows.place))
    assert [row["kept"] for row in rows_of(table)] == ["by caution alone", "no"]
    cells = [cell for cell in panel.cells if cell.record.calibration is None]
    assert calibration_table(panel_of([cell.record for cell in cells], cells[0].rows.place)) is None


def test_csv_has_full_precision(panel):
    records = list(csv.DictReader(io.StringIO(csv_of(decoding_lines([panel])))))
    static = next(r for r in records if r["label"] == "token-static" and r["knob_values"] == "0.2")
    assert float(static["match"]) == match_at(6.0)
    assert float(static["decode_speedup_b8"]) == pytest.approx(5)
    assert float(static["prefill_ms_b1"]) == pytest.approx(50)
    assert records[0]["label"] == STOCK


def test_results_say_their_kind(results, tmp_path):
    write_results(tmp_path)
    assert (kind_of_results(results), kind_of_results(tmp_path)) == ("generation", "classification")
    assert kind_of_results(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("table_format", "words"),
    [("md", "| knob |"), ("csv", "label"), ("latex", "toprule"), ("all", "over a static exit"), ("long", "validation")],
)
def test_tables_are_written_in_every_format(results, table_format, words):
    text = write_all_tables(results, table_format).read_text()
    assert "calm-tokens-softmax" in text
    assert words in text
    assert text.isascii() or table_format != "latex"


def test_unknown_format_is_refused(results):
    with pytest.raises(UserError, match="unknown table format 'html'"):
        write_all_tables(results, "html")


def test_published_figures_are_refused(results):
    with pytest.raises(UserError, match="no published figures of generation"):
        terminal_report(results, published=True)


def test_labels_narrow_and_keep_the_full_model(results):
    (narrowed,), _ = load_generation_panels(results, ["calm-tokens-state"])
    assert narrowed.labels == ["token-full", "calm-tokens-state"]
    with pytest.raises(UserError, match="unknown method in these results"):
        load_generation_panels(results, ["calm"])


def test_a_label_narrows_to_itself_and_a_method_without_one_to_all_of_its_entries():
    methods = ROOT / "results" / "decoding-methods"
    for narrowed in load_generation_panels(methods, ["calm-tokens-softmax"])[0]:
        assert narrowed.labels == ["token-full", "calm-tokens-softmax"]
    pruned = ROOT / "results" / "decoding-batches"
    (narrowed,), _ = load_generation_panels(pruned, ["calm-tokens-softmax"])
    assert narrowed.labels == ["calm-tokens-softmax-pruned"]


def test_classification_does_not_take_generation_for_damage(results):
    with pytest.raises(UserError, match="holds results of generation"):
        load_panels(results)
    with pytest.raises(UserError, match="holds results of generation"):
        load_leaderboard([results])


def test_one_figure_a_task(tmp_path):
    write_generation(tmp_path, tasks=("alpaca", "xsum"), seeds=(0, 1))
    paths, missing = write_all_figures(tmp_path, kinds=("png", "pdf"))
    assert missing == []
    assert {path.name for path in paths} == {f"curves-{t}.{e}" for t in ("alpaca", "xsum") for e in ("png", "pdf")}
    pixels = imread(tmp_path / "curves-alpaca.png")
    assert pixels.shape[1] > 2000
    assert pixels[..., :3].std() > 0.05


def test_positions_are_averaged_over_texts():
    point = decoding_point(0.5, "budget 0.50", 12, 0.5)
    short = point.model_copy(update={"layers_by_position": [30.0, 6.0], "texts_by_position": [10, 2]})
    long = point.model_copy(update={"layers_by_position": [6.0, 6.0, 6.0], "texts_by_position": [30, 30, 1]})
    cells = [generation_cell("calm", [p], seed=seed) for seed, p in enumerate((short, long))]
    row = row_near_half(panel_of(cells, None), "calm")
    assert layers_by_position(row).tolist() == [12.0, 6.0]  # one text says nothing


def test_row_near_half_is_of_the_nearest_budget(panel):
    assert row_near_half(panel, "token-static").targets == (HALF,)
    assert row_near_half(panel, "layerskip") is None
    assert panel.num_layers == LAYERS
    assert len(made_up_generation()) == len(panel.cells)


def test_report_is_one_page_with_tables_charts_and_warnings(results):
    page = write_html(results).read_text()
    for words in (
        "Points against the full model at equal cost",
        "Points over a static exit",
        "Calibrated thresholds",
        "prompts cut",
        "few seeds",
        "consistentee run made-up",
    ):
        assert words in page
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])
    assert set(charts) == {"#headline-chart", "#curves-chart", "#exits-chart"}
    (columns,) = charts["#curves-chart"]["data"]["values"]
    assert 100 * match_at(12) in [pytest.approx(match, abs=0.01) for match in columns["match"]]
