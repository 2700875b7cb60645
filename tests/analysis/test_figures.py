"""Print figures: what they show, their files and captions."""

import numpy as np
import pytest
from documents import ROOT
from records_by_hand import made_up_suite, results_of

from benchmarks.analysis.comparison import headline
from benchmarks.analysis.figures import TEXT_WIDTH, draw_figure, exit_shares, palette, write_figures
from benchmarks.analysis.frames import load_results


def test_points_at_equal_cost_lie_where_the_headline_has_them(results):
    figure = draw_figure("equal-cost", results)
    assert figure.get_figwidth() == TEXT_WIDTH
    assert figure.get_supxlabel() == "points against the full model, mean of 2 tasks"
    found = headline(results)
    for axes, budget in zip(figure.axes, results.speedups, strict=True):
        drawn = sorted(x for dots in axes.collections for x, _ in dots.get_offsets().tolist() if not np.isnan(x))
        expected = sorted(found.loc[found["budget"] == budget, "points"])
        assert set(np.round(expected, 6)) <= set(np.round(drawn, 6))


def test_files_have_captions_and_are_the_same_twice(results, tmp_path):
    paths, missing = write_figures(results, tmp_path, ["equal-cost"])
    assert ([path.name for path in paths], missing) == (["equal-cost.png"], [])
    caption = (tmp_path / "equal-cost.txt").read_text()
    assert "at 1.5, 2, 3 times the speed in layers, mean of 2 tasks. Lines: 95% paired bootstrap" in caption
    assert "Tasks (2): mcid, rte. Seeds of a method on a task: 2. Backbone: minilm-l6." in caption
    one = results.only(tasks=["mcid"])
    write_figures(one, tmp_path, ["curves"])
    caption = (tmp_path / "curves.txt").read_text()
    assert caption.startswith("Points against the full model over the speed-up in layers")
    assert "Tasks (1): mcid." in caption
    write_figures(one.where([record.label != "full" for record in one.records]), tmp_path, ["curves"])
    assert (tmp_path / "curves.txt").read_text().startswith("Accuracy, % over the speed-up")
    first = paths[0].read_bytes()
    write_figures(results, tmp_path, ["equal-cost"])
    assert paths[0].read_bytes() == first


@pytest.mark.parametrize("folder", ["cpu-12-layers", "decoding-methods"])
def test_no_curve_leaves_through_an_axis(folder):
    for axes in draw_figure("curves", load_results(ROOT / "results" / folder)).axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            xs, ys = (np.asarray(values, dtype=float) for values in line.get_data())
            if len(xs) > 2 and not np.isnan(ys).all():
                assert left <= np.nanmin(xs[~np.isnan(ys)]) <= np.nanmax(xs[~np.isnan(ys)]) <= right
                assert low <= np.nanmin(ys) <= np.nanmax(ys) <= high


def test_curves_that_cannot_be_drawn_are_named(tmp_path):
    alone = results_of(made_up_suite(labels=("deebert",)))
    paths, missing = write_figures(alone, tmp_path, ["equal-cost"])
    assert paths == []
    assert [line.partition(":")[0] for line in missing] == ["equal-cost"]


def test_exit_shares_by_hand(results):
    own = exit_shares(results).query("task == 'mcid' and label == 'deebert'")
    assert own["share"].sum() == pytest.approx(1)
    assert (own["share"] * own["layer"]).sum() == pytest.approx(3), "at twice the speed"


def test_colours_stand_for_the_network_of_the_exits(tmp_path):
    attention = {"deebert", "calm-softmax"}
    cells = [
        (r.model_copy(update={"exit_network": "attention" if r.label in attention else "linear"}), frames)
        for r, frames in made_up_suite()
    ]
    colours = palette(results_of(cells))
    assert colours["deebert"] == colours["calm-softmax"] != colours["pabee"] == colours["consistentee"]
    assert colours["static"] == colours["random"] not in (colours["deebert"], colours["pabee"])
    write_figures(results_of(cells), tmp_path, ["equal-cost"])
    caption = (tmp_path / "equal-cost.txt").read_text()
    for word in ("orange linear", "blue attention", "grey is any other, or a reference"):
        assert word in caption


def test_a_task_that_hardly_any_method_was_run_on_has_no_panel():
    records = [*made_up_suite(), *made_up_suite(task="stsb", labels=("full", "static"))]
    titles = {axes.get_title() for axes in draw_figure("exits", results_of(records)).axes}
    assert ("mcid" in titles, "stsb" in titles) == (True, False)
