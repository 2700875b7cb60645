"""Over all tasks: gains over static exits at equal layers, and the clock against the layers, by hand."""

import numpy as np
import pandas as pd
import pytest
from records_by_hand import LAYERS, ROWS, cell, curve_point, made_up_suite, operating_point, stored, timing

from benchmarks.analysis.comparisons.real_time import clock_summary
from benchmarks.analysis.comparisons.static_gains import static_gains
from benchmarks.analysis.figures.gains import gains_figure
from benchmarks.analysis.panels.results import panels
from benchmarks.analysis.tables.overall import clock_table, overall_tables, static_gain_table
from benchmarks.store.folders import write_predictions

LABELS = np.arange(ROWS) % 4
EVEN = np.arange(ROWS) % 2 == 0


def answers(right):
    return np.where(right, LABELS, LABELS + 1)


def panel_with(tmp_path, layers, right, layer_right, with_layers=True):
    """A method right on the rows ``right``, at ``layers`` layers, and static exits right on ``layer_right``."""
    curve = [curve_point(t, float(t), layer_right[t].mean()) for t in range(1, LAYERS + 1)]
    point = operating_point(0.5, "budget 0.50", layers, right.mean())
    records = {
        "static": cell("static", [operating_point(3, "budget 0.50", 3.0, layer_right[3].mean())], curve=curve),
        "deebert": cell("deebert", [point]),
    }
    columns = {"row": np.arange(ROWS), "label": LABELS}
    tables = {
        "deebert": {"prediction_0": answers(right), "exit_layer_0": np.ones(ROWS, dtype=int)},
        "static": {f"layer_prediction_{t}": answers(layer_right[t]) for t in layer_right if with_layers},
    }
    for name, table in tables.items():
        write_predictions(tmp_path / name / "predictions.parquet", pd.DataFrame({**columns, **table}))
    return panels([stored(record, tmp_path / name) for name, record in records.items()], [])[0]


def test_gain_is_over_the_static_exit_at_equal_layers(tmp_path):
    layer_right = {t: EVEN if t <= 2 else np.ones(ROWS, dtype=bool) for t in range(1, LAYERS + 1)}
    gains = static_gains(panel_with(tmp_path, 2.5, np.ones(ROWS, dtype=bool), layer_right))
    assert list(gains) == ["deebert"]
    gain = gains["deebert"]
    assert gain.gain == pytest.approx(1.0 - (0.5 + 1.0) / 2)  # halfway from layer 2, half right, to layer 3, all right
    assert gain.interval is not None
    low, high = gain.interval
    assert low < 0.25 < high  # of each resample, half of the share of odd rows
    assert high - low < 0.1
    assert gain.beyond_noise == 1


def test_answers_like_the_static_exits_gain_nothing(tmp_path):
    layer_right = dict.fromkeys(range(1, LAYERS + 1), EVEN)
    gain = static_gains(panel_with(tmp_path, 3.0, EVEN, layer_right))["deebert"]
    assert (gain.gain, gain.interval, gain.beyond_noise) == (0.0, (0.0, 0.0), 0)


def test_a_loss_is_marked_as_plainly(tmp_path):
    layer_right = {t: np.ones(ROWS, dtype=bool) for t in range(1, LAYERS + 1)}
    gain = static_gains(panel_with(tmp_path, 3.0, EVEN, layer_right))["deebert"]
    assert gain.gain == -0.5
    assert gain.beyond_noise == -1


def test_without_answers_of_layers_there_is_a_gain_and_no_interval(tmp_path):
    layer_right = dict.fromkeys(range(1, LAYERS + 1), EVEN)
    gain = static_gains(panel_with(tmp_path, 3.0, EVEN, layer_right, with_layers=False))["deebert"]
    assert gain.interval is None
    assert gain.beyond_noise == 0


def test_more_layers_than_the_model_has_compare_with_nothing(tmp_path):
    layer_right = dict.fromkeys(range(1, LAYERS + 1), EVEN)
    panel = panel_with(tmp_path, 3.0, EVEN, layer_right)
    point = operating_point(0.5, "budget 0.50", 3.0, 0.5)
    longer = point.test.model_copy(update={"exit_histogram": [0, 0, 0, 0, 0, 0, 0, ROWS]})
    cascade = cell("deebert", [point.model_copy(update={"test": longer})])
    cells = [panel.cells_of("static")[0], stored(cascade, tmp_path / "deebert")]
    assert static_gains(panels(cells, [])[0]) == {}


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
        "Points over a static exit at equal layers, within 50% of the layers",
        "Measured speed-up and layers",
    ]
