"""Methods at exactly equal cost, by hand."""

import numpy as np
import pandas as pd
import pytest
from records_by_hand import LAYERS, cell, curve_point, made_up_suite, operating_point, stored, write_results

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.resampled import interval_at_equal_cost
from benchmarks.analysis.panels.results import load_panels, panels
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.tables.equal_cost import NO_ROWS_NOTE, equal_cost_tables
from benchmarks.store.folders import write_predictions
from benchmarks.store.records import CellRecord, CurvePoint, HullPoint
from consistentee.data.metrics import score


def panel_of(*records, folder=None):
    (panel,) = panels([stored(record, folder) if folder else stored(record) for record in records], [])
    return panel


def curve(*points):
    return [curve_point(float(i), layers, value) for i, (layers, value) in enumerate(points)]


def full(value=0.9, seed=0, task="mcid"):
    return cell("full", [operating_point(LAYERS, "within 1 point", LAYERS, value)], seed=seed, task=task)


def method(points, **more):
    return cell("deebert", [operating_point(0.0, "budget 0.50", 2.0, 0.7)], curve=curve(*points), **more)


def test_two_knobs_are_mixed_to_the_budget():
    found = at_equal_cost(panel_of(full(), method([(2.0, 0.7), (3.0, 0.71), (5.0, 0.88)])), "deebert", 1.5)
    assert found.layers == pytest.approx(4.0)
    assert found.score == pytest.approx(0.7 / 3 + 0.88 * 2 / 3)  # the middle knob lies below the hull
    assert found.points == pytest.approx(found.score - 0.9)
    assert found.reaches == (Reach.MET,)


def test_knobs_and_weights_come_from_validation_and_scores_from_test():
    record = method([(2.0, 0.7), (4.0, 0.9)])
    test = curve((2.5, 0.6), (4.5, 0.8))
    record = record.model_copy(update={"curve_test": test})
    found = at_equal_cost(panel_of(full(), record), "deebert", 2.0)
    assert (found.layers, found.score) == (pytest.approx(3.5), pytest.approx(0.7))


def test_a_grid_is_one_curve_and_seeds_are_averaged():
    cells = [method([(2.0, 0.6)], parameters={"alpha": 0.3}, seed=seed) for seed in (0, 1)]
    cells += [method([(4.0, 0.8 + 0.1 * seed)], parameters={"alpha": 0.1}, seed=seed) for seed in (0, 1)]
    panel = panel_of(full(0.9, 0), full(0.8, 1), *cells)
    found = at_equal_cost(panel, "deebert", 2.0)
    assert found.score == pytest.approx((0.7 + 0.75) / 2)
    assert found.points == pytest.approx((0.7 - 0.9 + 0.75 - 0.8) / 2)


def test_budgets_beyond_the_curve_are_marked():
    panel = panel_of(full(), method([(2.5, 0.7), (3.5, 0.9)]))
    assert at_equal_cost(panel, "deebert", 3.0).reaches == (Reach.OVER,)
    assert at_equal_cost(panel, "deebert", 1.5).reaches == (Reach.UNDER,)
    narrow = panel_of(full(), method([(3.5, 0.8), (4.0, 0.9)]))
    means, by_task = equal_cost_tables([panel, narrow])
    assert by_task.cells == (("deebert", "-10.0", "-10.0†"),)
    assert means.cells[0][2] == "-10.0†"


def test_f1_is_scored_as_a_weighted_sample_where_answers_are_known(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    answers = [np.where(generator.random(60) < right, labels, 1 - labels) for right in (0.6, 0.9)]
    points = []
    for i, (layers, said) in enumerate(zip((2.0, 4.0), answers, strict=True)):
        side = CurvePoint(
            knob=float(i),
            scores={"f1": score("f1", labels, said)},
            exit_histogram=curve_point(0, layers, 0).exit_histogram,
        )
        points.append(
            operating_point(float(i), "budget 0.50", layers, 0.5).model_copy(update={"validation": side, "test": side})
        )
    columns = {"row": np.arange(60), "label": labels}
    for i, said in enumerate(answers):
        columns |= {f"prediction_{i}": said, f"exit_layer_{i}": np.ones(60, dtype=int)}
    write_predictions(tmp_path / "predictions.parquet", pd.DataFrame(columns))
    values = cell("deebert", points).model_dump() | {"metric": "f1"}
    found = at_equal_cost(panel_of(CellRecord.model_validate(values), folder=tmp_path), "deebert", 2.0)
    assert found.score == pytest.approx(score("f1", [*labels, *labels], np.concatenate(answers)))
    (tmp_path / "predictions.parquet").unlink()
    linear = at_equal_cost(panel_of(CellRecord.model_validate(values)), "deebert", 2.0)
    assert linear.score == pytest.approx(np.mean([p.test.scores["f1"] for p in points]))


def test_answers_at_the_hull_are_enough_for_an_interval(tmp_path):
    """One neighbour of the budget is no operating point: its answers are those of the layers where rows exit."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 600)
    by_layer = {t: np.where(generator.random(600) < 0.6 + 0.05 * t, labels, 1 - labels) for t in range(1, LAYERS + 1)}
    record = method([(2.0, 0.7), (4.0, 0.8), (5.0, 0.85)])
    hull = [HullPoint(place=place, validation_flops=1.0, flops=1.0) for place in range(3)]
    records = {"deebert": record.model_copy(update={"hull": hull}), "full": full(0.9)}
    layers = {f"layer_prediction_{t}": answers for t, answers in by_layer.items()}
    columns = {
        "deebert": {**layers, "prediction_0": by_layer[2], "hull_exit_layer_1": np.full(600, 4)},
        "full": {"prediction_0": by_layer[LAYERS]},
    }
    for label, more in columns.items():
        rows = pd.DataFrame({"row": np.arange(600), "label": labels, **more})
        write_predictions(tmp_path / label / "predictions.parquet", rows)
    (panel,) = panels([stored(record, tmp_path / label) for label, record in records.items()], [])
    low, high = interval_at_equal_cost(panel, "deebert", 2.0) or (0.0, 0.0)
    right = [by_layer[t] == labels for t in (2, 4, LAYERS)]
    gain = (right[0].astype(float) + right[1]) / 2 - right[2]
    half = 1.96 * gain.std() / np.sqrt(600)
    assert (low, high) == (pytest.approx(gain.mean() - half, abs=4e-3), pytest.approx(gain.mean() + half, abs=4e-3))


def test_tables_of_the_made_up_suite():
    found = [p for task in ("mcid", "rte") for p in panels([stored(r) for r in made_up_suite(task=task)], [])]
    means, by_task = equal_cost_tables(found)
    assert means.headings[:5] == ("method", "at 1.5x", "at 2x", "at 3x", "layers 2x")
    assert means.notes[-1] == NO_ROWS_NOTE
    labels = [cells[0] for cells in means.cells]
    assert labels[0] == "consistentee"
    assert {"full", "oracle", "majority"}.isdisjoint(labels)
    at_double = [float(cells[2].partition("†")[0]) for cells in means.cells]
    assert at_double == sorted(at_double, reverse=True)
    means_at_double = {cells[0]: cells[2].partition("†")[0] for cells in means.cells}
    assert {cells[0]: cells[1].rstrip("†‡") for cells in by_task.cells} == means_at_double, "both tasks are alike"


def test_without_a_full_model_there_are_no_points(tmp_path):
    write_results(tmp_path)
    found, _ = load_panels(tmp_path)
    assert len(equal_cost_tables(found)) == 1, "one task has no mean"
    assert equal_cost_tables([panel_of(method([(2.0, 0.7)]))]) == []
