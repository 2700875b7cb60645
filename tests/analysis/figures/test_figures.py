"""The figures beside the curves: what they count, and that each of them can be drawn, or says why not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from records_by_hand import LAYERS, ROWS, cell, made_up_suite, operating_point, stored, timing, write_results

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.real_time import measured_speedups
from benchmarks.analysis.figures.catalogue import FIGURES, write_figures
from benchmarks.analysis.figures.equal_cost import equal_cost_figure
from benchmarks.analysis.figures.exits import (
    exit_shares,
    memorized_against_exit,
    memorized_layers,
    policy_figure,
    signal_by_layer,
)
from benchmarks.analysis.figures.page import COLUMN, TEXT
from benchmarks.analysis.figures.speeds import methods_figure
from benchmarks.analysis.figures.styles import styles
from benchmarks.analysis.panels.results import load_panels, panels
from benchmarks.analysis.rows.instances import row_for_half
from consistentee.methods.hardness import memorized_layer

tables = st.integers(1, 6).flatmap(
    lambda layers: st.lists(st.lists(st.booleans(), min_size=layers, max_size=layers), min_size=1, max_size=20)
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder, tasks=("mcid", "sst2"))
    return folder


def drawn_by(found):
    """Draw all figures: name -> its pages."""
    return {kind.name: kind.figures(found, styles(found)) for kind in FIGURES}


@given(tables)
def test_memorized_layers_are_those_of_the_library(table):
    correct = np.asarray(table)
    assert memorized_layers(correct).tolist() == memorized_layer(torch.as_tensor(correct)).tolist()


def test_memorized_layers_against_exits_count_every_row(results):
    panel = load_panels(results)[0][0]
    counts = memorized_against_exit(panel, "deebert")
    assert counts is not None
    assert counts.shape == (LAYERS, LAYERS)
    assert counts.sum() == ROWS
    eighth = ROWS // 8  # rows that are never right count as Memorized Layer L
    assert counts.sum(axis=1).tolist() == [eighth] * 5 + [3 * eighth]
    row = row_for_half(panel, "deebert")
    assert row is not None
    assert (counts.sum(axis=0) / ROWS).tolist() == exit_shares(row).tolist()


def test_records_without_the_answers_of_layers_have_no_memorized_layer():
    (panel,) = panels([stored(record) for record in made_up_suite()], [])
    assert memorized_against_exit(panel, "deebert") is None
    assert memorized_against_exit(panel, "majority") is None


def test_a_cascade_may_have_more_exits_than_its_peers():
    point = operating_point(0.5, "budget 0.50", 3.0, 0.8)
    longer = point.test.model_copy(update={"exit_histogram": [50, 0, 100, 0, 0, 0, 0, 50]})
    cells = [cell("deebert", [point]), cell("cascade", [point.model_copy(update={"test": longer})])]
    (panel,) = panels([stored(record) for record in cells], [])
    (exits,) = drawn_by([panel])["exits"]
    assert [label.get_text() for label in exits.axes[0].get_xticklabels()] == [str(t) for t in range(1, 9)]


def test_measured_against_allowed():
    cells = made_up_suite()
    (panel,) = panels([stored(record) for record in cells], [timing(cells)])
    points = measured_speedups(panel, 1)
    assert len(points) == sum(len(record.operating_points) for record in cells)
    for _, allowed, measured in points:
        assert measured == pytest.approx(allowed)  # the made-up clock follows the layers
    assert measured_speedups(panel, 7) == []


def test_signals_are_averaged_over_seeds_and_needed_of_all():
    cells = [cell("consistentee", [operating_point(0.5, "budget 0.50", 3.0, 0.8)], seed=seed) for seed in (0, 1)]
    (panel,) = panels([stored(record) for record in cells], [])
    quantiles = signal_by_layer(panel, "consistentee")
    assert quantiles is not None
    assert quantiles.shape == (LAYERS - 1, 5)
    older = cells[1].operating_points[0].model_copy(update={"signal_quantiles": []})
    cells[1] = cells[1].model_copy(update={"operating_points": [older]})
    (panel,) = panels([stored(record) for record in cells], [])
    assert signal_by_layer(panel, "consistentee") is None
    assert policy_figure([panel]) is None


def test_every_figure_is_written(results):
    paths, missing = write_figures(results, to=results)
    assert missing == []
    assert all(imread(path).shape[1] in (300 * COLUMN, 300 * TEXT) for path in paths)
    assert {path.name for path in paths} == {f"{kind.name}.png" for kind in FIGURES}
    assert all(path.stat().st_size > 5000 for path in paths)


def test_processes_share_the_figures_and_write_the_same_files(results):
    paths, _ = write_figures(results, to=results)
    alone = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    shared, missing = write_figures(results, to=results, processes=2)
    assert (shared, missing) == (paths, [])
    assert [path.read_bytes() for path in shared] == alone


def test_points_at_equal_cost_are_those_of_the_table(results):
    loaded, _ = load_panels(results)
    (axes,) = equal_cost_figure(loaded).axes
    drawn = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
    for label in ("consistentee", "static"):
        expected = np.mean([at_equal_cost(panel, label, 2.0).points for panel in loaded])
        assert drawn[label][2.0] == pytest.approx(100 * expected)
    assert "oracle" not in drawn


def test_lines_of_a_method_are_counted_from_the_full_models_of_its_seeds():
    cells = [
        cell("full", [operating_point(6, "within 1 point", 6.0, score)], seed=s) for s, score in enumerate((0.8, 0.7))
    ]
    cells += [cell("deebert", [operating_point(0.5, "budget 0.50", 3.0, 0.78)], seed=0)]
    cells += [cell("pabee", [operating_point(0.5, "budget 0.50", 3.0, 0.78)], seed=s) for s in (0, 1)]
    found = panels([stored(record) for record in cells], [])
    ends = {axes.get_title(): axes.get_lines()[-2].get_ydata()[-1] for axes in methods_figure(found).axes}
    assert ends == {"deebert": pytest.approx(-2.0), "pabee": pytest.approx(3.0)}


def test_what_cannot_be_drawn_says_why():
    alone = cell("deebert", [operating_point(0.9, "within 1 point", 5.0, 0.8)])
    (panel,) = panels([stored(alone)], [])
    missing = {name for name, figures in drawn_by([panel]).items() if not figures}
    assert missing == {"equal-cost", "times", "gains", "methods", "exits", "memorized", "speedups", "policy", "ranks"}
    assert all(kind.missing for kind in FIGURES if kind.name in missing)
