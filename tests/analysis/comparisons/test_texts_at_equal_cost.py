"""Decoding at equal cost, and batches beside what their layers allow, from records made up from a few numbers."""

import math

import numpy as np
import pytest
from generation_by_hand import (
    FULL_NATS,
    LAYERS,
    PROMPTS,
    STOCK_SECONDS,
    TOKENS,
    decoding_point,
    decoding_timing,
    generation_cell,
    generation_predictions,
    mean,
    write_generation,
)
from records_by_hand import made_up_suite, stored

from benchmarks.analysis.comparisons.batches import Batch, timed_batches
from benchmarks.analysis.comparisons.equal_cost import at_equal_cost, at_equal_ratio
from benchmarks.analysis.comparisons.resampled import interval_at_equal_cost
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.report.charts.curve_data import curve_data
from benchmarks.analysis.report.contents.texts import GENERATION
from benchmarks.analysis.rows.scored import MATCH, NATS, TO_FULL
from benchmarks.analysis.rows.texts import load_generation_panels
from benchmarks.analysis.tables.equal_cost import headline_lines
from benchmarks.analysis.tables.generation.batches import batches_table, middle_batches_table
from benchmarks.analysis.tables.generation.decoding_cost import measures_table, text_cost_tables, text_headline_lines
from benchmarks.specs.targets import FAITHFUL
from benchmarks.store.folders import write_predictions
from benchmarks.store.generation_records import DecodingSamples
from benchmarks.store.stored_results import BaseStoredCell, CellFolder

FULL = generation_cell("token-full", [decoding_point(30, str(FAITHFUL), 30, 1.0, nats=FULL_NATS)])


def static_cell():
    """Return static exits at 12 and 24 layers, whose references lose half a nat a token more than full, and a tenth."""
    return generation_cell(
        "token-static",
        [
            decoding_point(12, "budget 0.50", 12, 0.4, nats=FULL_NATS + 0.5),
            decoding_point(24, "", 24, 0.8, nats=FULL_NATS + 0.1),
        ],
    )


def panel_of(folder, *records, timings=()):
    cells = []
    for record in records:
        place = CellFolder(folder / record.label)
        write_predictions(folder / record.label / "predictions.parquet", generation_predictions(record))
        cells.append(BaseStoredCell(record, place))
    (panel,) = panels(cells, list(timings))
    return panel


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    return panel_of(tmp_path_factory.mktemp("cells"), FULL, static_cell())


def test_two_decoded_knobs_are_mixed_to_the_budget(panel):
    assert panel.speedups == (1.25, 1.5, 2.0)
    found = at_equal_cost(panel, "token-static", 1.5)  # 20 of 30 layers: a third takes 12, two thirds 24
    assert found.layers == pytest.approx(20)
    assert found.score == pytest.approx(0.3 * (0.4 / 3 + 0.8 * 2 / 3))
    assert found.points == pytest.approx(found.score - 0.3)
    assert found.kept == pytest.approx(found.score / 0.3)
    assert found.flops_ratio == pytest.approx(1.5)
    assert at_equal_cost(panel, "token-static", 1.25).reaches == (Reach.MET,)


@pytest.mark.parametrize(("measure", "full"), [(TO_FULL, 1.0), (MATCH, 1.0), (NATS, FULL_NATS)])
def test_other_scores_are_against_their_own_full_depth(panel, measure, full):
    found = at_equal_cost(panel, "token-static", 1.5, measure)
    expected = {NATS: FULL_NATS + 0.5 / 3 + 0.2 / 3}.get(measure, 0.4 / 3 + 1.6 / 3)
    assert found.score == pytest.approx(expected)
    assert found.points == pytest.approx(expected - full)
    low, high = interval_at_equal_cost(panel, "token-static", 1.5, measure)
    assert (low, high) == pytest.approx((expected - full, expected - full)), "no prompt differs from another"


def test_intervals_are_paired_over_prompts(panel):
    low, high = interval_at_equal_cost(panel, "token-static", 1.5)
    points = at_equal_cost(panel, "token-static", 1.5).points
    assert (low, high) == pytest.approx((points, points)), "prompts differ alike in both models"


def panel_of_texts(folder, layers, agreement, scores):
    """Return a panel of the full model and static exits whose texts score so much: [knobs, prompts]."""
    cheap = zip(layers, agreement, strict=True)
    static = generation_cell("token-static", [decoding_point(t, "", t, agrees) for t, agrees in cheap])
    panel = panel_of(folder, FULL, static)
    table = generation_predictions(static)
    for knob, of_prompts in enumerate(scores):
        table[f"rougeL_{knob}"] = of_prompts
    write_predictions(folder / "token-static" / "predictions.parquet", table)
    return panel


def test_texts_choose_the_hull_and_not_agreement(tmp_path):
    scores = [np.full(PROMPTS, score) for score in (0.1, 0.29, 0.3)]
    panel = panel_of_texts(tmp_path, (6, 24, 30), (0.3, 0.6, 1.0), scores)
    found = at_equal_cost(panel, "token-static", 1.25)
    assert (found.layers, found.score) == (24, pytest.approx(0.29)), "by agreement 6 and 30 layers would be mixed"
    low, high = interval_at_equal_cost(panel, "token-static", 1.25)
    assert low < -0.01 < high < low + 0.01, "of the same mixture"


def test_no_text_is_scored_at_a_knob_that_it_chose(tmp_path):
    even = (np.arange(PROMPTS) % 2 == 0).astype(float)
    panel = panel_of_texts(tmp_path, (12, 12.001), (0.4, 0.4), [even, 1 - even])
    assert at_equal_cost(panel, "token-static", 2.0).score == 0.0, "each half likes the knob that fails the other"
    assert at_equal_cost(panel, "token-static", 2.0, MATCH).score > 0, "the task's own score chooses for all measures"


def test_without_scores_of_prompts_all_texts_choose(tmp_path):
    static = generation_cell("token-static", [decoding_point(t, "", t, agrees) for t, agrees in ((6, 0.3), (30, 0.9))])
    better = static.operating_points[0].model_copy(
        update={"knob": 24.0, "validation": decoding_point(24, "", 24, 0.4).validation}
    )
    better = better.model_copy(update={"scores": {**better.scores, "rougeL": mean(0.26)}, "average_layers": 24.0})
    record = static.model_copy(
        update={
            "operating_points": [static.operating_points[0], better, static.operating_points[1]],
            "curve_validation": [static.curve_validation[0], better.validation, static.curve_validation[1]],
        }
    )
    panel = panel_of(tmp_path, FULL, record)
    (tmp_path / "token-static" / "predictions.parquet").unlink()
    found = at_equal_cost(panel, "token-static", 1.25)
    assert (found.layers, found.score) == (24, pytest.approx(0.26)), "by agreement 6 and 30 layers would be mixed"
    assert interval_at_equal_cost(panel, "token-static", 1.25) is None


def test_layers_are_those_of_both_halves(tmp_path):
    even = (np.arange(PROMPTS) % 2 == 0).astype(float)
    panel = panel_of_texts(tmp_path, (12, 14), (0.4, 0.4), [even, 1 - even])
    assert at_equal_cost(panel, "token-static", 2.0).layers == pytest.approx(13), "12 for one half, 14 for the other"


def test_halves_are_mixed_prompt_by_prompt(tmp_path):
    generator = np.random.default_rng(0)
    scores = np.sort(generator.random((3, PROMPTS)), axis=0)  # deeper is better, for every prompt
    panel = panel_of_texts(tmp_path, (6, 18, 30), (0.2, 0.5, 1.0), scores)
    halves = []
    for half in (0, 1):
        low, middle, high = scores[:, 1 - half :: 2].mean(axis=1)
        pair, weight = ([1, 2], 5 / 6) if middle > (low + high) / 2 else ([0, 2], 5 / 12)
        first, second = scores[pair][:, half::2]
        halves.append(weight * first + (1 - weight) * second)
    assert at_equal_cost(panel, "token-static", 1.5).score == pytest.approx(np.concatenate(halves).mean())
    low, high = interval_at_equal_cost(panel, "token-static", 1.5)
    spread = 1.96 * np.std(np.concatenate(halves)) / np.sqrt(PROMPTS)
    assert high - low == pytest.approx(2 * spread, rel=0.15)


def test_layers_are_not_the_only_cost(panel):
    by_flops = at_equal_ratio(panel, "token-static", 1.5, "flops_ratio")
    assert by_flops.score == pytest.approx(at_equal_cost(panel, "token-static", 1.5).score)
    assert at_equal_ratio(panel, "token-static", 1.5, "speedup_b1") is None, "nothing was timed"


def test_perplexity_is_shown_where_references_were_read(panel, tmp_path):
    row = next(cells for cells in measures_table(panel).cells if cells[1] == "1.5x")
    nats = FULL_NATS + 0.7 / 3
    assert row[6] == f"{math.exp(nats):.2f}"
    assert row[7].startswith(f"{math.exp(0.7 / 3):.2f} [")
    old = [generation_cell("token-full", [decoding_point(30, str(FAITHFUL), 30, 1.0)])]
    old.append(generation_cell("token-static", [decoding_point(12, "budget 0.50", 12, 0.4)]))
    rows = measures_table(panel_of(tmp_path, *old)).cells
    assert {cells[6:8] for cells in rows} == {("n/a", "n/a")}
    assert all(cells[3] != "n/a" for cells in rows)


def test_headline_has_the_columns_of_classification_and_more(tmp_path):
    write_generation(tmp_path, tasks=("alpaca", "dolly"))
    loaded, _ = load_generation_panels(tmp_path)
    lines = text_headline_lines(loaded)
    assert {line["budget"] for line in lines} == {1.25, 1.5, 2.0}
    for name in ("points", "low", "high", "rank", "tasks", "seeds", "kept", TO_FULL, MATCH):
        assert all(line[name] != "" for line in lines), name
    assert {line["tasks"] for line in lines} == {2}
    means, costs, tests, by_task, over_static = text_cost_tables(loaded)
    assert over_static.title == "Points over a static exit at 1.5x, task by task"
    assert means.headings[1:4] == ("at 1.25x", "at 1.5x", "at 2x")
    assert [cells[0] for cells in means.cells][-1] == "layerskip", "it spends 21 layers of 20"
    assert tests.cells[0][0] == "consistentee-tokens"
    assert costs.headings == ("method", "layers", "FLOPs", "clock b1", "clock b8")
    assert by_task.headings == ("method", "alpaca", "dolly")


def test_the_report_draws_means_over_tasks_at_equal_cost(tmp_path):
    write_generation(tmp_path, tasks=("alpaca", "dolly"))
    loaded, _ = load_generation_panels(tmp_path)
    columns = curve_data(loaded, ["token-static"], GENERATION).columns
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (at,) = [x for x in lines if x["task"] == "mean of 2 tasks" and x["knob"] == "knobs mixed to 1.5x"]
    for column, measure in (("score", None), ("match", MATCH)):
        expected = np.mean([at_equal_cost(panel, "token-static", 1.5, measure).score for panel in loaded])
        assert at[column] == pytest.approx(100 * expected, abs=1e-3)


def test_classification_has_no_measures_of_texts():
    (first,) = panels([stored(record) for record in made_up_suite()], [])
    with pytest.raises(ValueError, match="score of texts"):
        at_equal_cost(first, "deebert", 2.0, MATCH)
    assert "kept" not in headline_lines([first])[0]


# ---------------------------------------------------------------------------------------------- batches

HEAD = 0.1
"""Of the stock model's time."""


def regrouped_timing(record):
    """Time batches of 1 out of 8 prompts under way, at 0.9 of the speed that the layers allow."""
    timing = decoding_timing([record])
    stock, *others = timing.contenders
    for place, sample in enumerate(stock.samples):
        head = [[HEAD * second for second in batches] for batches in sample.decode_seconds]
        stock.samples[place] = sample.model_copy(update={"head_seconds": head})
    for one in others:
        share = one.average_layers / LAYERS
        allowed = STOCK_SECONDS * (HEAD + (1 - HEAD) * share)
        tokens = [8 * (TOKENS - 1)] * 2
        rounds = [[allowed / 0.9 * (1 + 0.02 * i) * count for count in tokens] for i in range(3)]
        one.samples.append(
            DecodingSamples(
                batch_size=1,
                in_flight=8,
                prompts=16,
                decoded_tokens=tokens,
                prefill_seconds=[[0.4] * 2] * 3,
                decode_seconds=rounds,
                layer_calls=[round(share * LAYERS * count) for count in tokens],
                completed_seconds=[[float(i) for i in range(1, 17)]] * 3,
            )
        )
    return timing


def test_batches_are_set_beside_stock_generate_and_what_layers_allow(tmp_path):
    record = static_cell()
    panel = panel_of(tmp_path, FULL, record, timings=[regrouped_timing(record)])
    stock, first, second = timed_batches(panel)
    assert (stock.label, stock.knob, first.knob, second.knob) == ("stock generate", None, 12, 24)
    assert set(stock.times) == {Batch(1, 1), Batch(8, 8)}
    for point in (first, second):
        found, share = point.times[Batch(8, 1)], point.layers / LAYERS
        assert found.of_allowed == pytest.approx(0.9)
        assert found.speedup == pytest.approx(0.9 / 4 / (HEAD + (1 - HEAD) * share)), "8 at once take a quarter"
        assert (found.latency, found.latency_p90) == (8.5, 15.0)
        assert point.times[Batch(1, 1)].latency is None
    assert panel.batch_sizes == [1, 8]
    assert at_equal_cost(panel, "token-static", 1.5).time_ratios == pytest.approx({1: 1.5, 8: 1.5}), (
        "rows in step alone"
    )
    assert [cells[0] for cells in batches_table(panel).cells] == ["stock generate", "token-static", "token-static"]
    middle = middle_batches_table(panel)
    assert middle.headings[3:6] == ("batch 1", "batch 1 of 8", "batch 8")
    assert [cells[1] for cells in middle.cells] == ["full depth", "threshold=24"]
    assert np.isclose(float(middle.cells[1][4].split()[0]), 0.9 / STOCK_SECONDS / (HEAD + (1 - HEAD) * 0.8), rtol=0.02)
    assert PROMPTS > 16


def test_without_regrouped_batches_there_is_no_table_of_them(tmp_path):
    record = static_cell()
    assert batches_table(panel_of(tmp_path, FULL, record, timings=[decoding_timing([record])])) is None
