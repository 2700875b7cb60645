"""Print figures: what they show, their files and captions, and the Memorized Layers that they count."""

import numpy as np
import pytest
from records_by_hand import made_up_suite, results_of

from benchmarks.analysis.comparison import comparison_of, headline
from benchmarks.analysis.figures import (
    FIGURES,
    TEXT_WIDTH,
    draw_figure,
    exit_shares,
    memorized_against_exit,
    palette,
    write_figures,
)


def test_points_at_equal_cost_lie_where_the_headline_has_them(results):
    figure = draw_figure("equal-cost", results)
    assert figure.get_figwidth() == TEXT_WIDTH
    found = headline(results)
    for axes, budget in zip(figure.axes, results.speedups, strict=True):
        drawn = sorted(x for dots in axes.collections for x, _ in dots.get_offsets().tolist() if not np.isnan(x))
        expected = sorted(found.loc[found["budget"] == budget, "points"])
        assert set(np.round(expected, 6)) <= set(np.round(drawn, 6))


def test_files_have_captions_and_are_the_same_twice(results, tmp_path):
    paths, missing = write_figures(results, tmp_path, ["equal-cost"])
    assert ([path.name for path in paths], missing) == (["equal-cost.png"], [])
    caption = (tmp_path / "equal-cost.txt").read_text()
    assert "95% paired bootstrap" in caption
    assert "Tasks (2): mcid, rte. Seeds of a method on a task: 2. Backbone: minilm-l6." in caption
    first = paths[0].read_bytes()
    write_figures(results, tmp_path, ["equal-cost"])
    assert paths[0].read_bytes() == first


@pytest.mark.parametrize("kind", FIGURES[1:], ids=lambda kind: kind.name)
def test_every_kind_is_drawn(results, kind):
    figure = draw_figure(kind.name, results)
    titles = {axes.get_title() for axes in figure.axes}
    assert titles & {"mcid", "mean of 2 tasks", "PABEE"}


def test_what_cannot_be_drawn_is_said(tmp_path):
    alone = results_of([one for one in made_up_suite() if one[0].label == "deebert"])
    paths, missing = write_figures(alone, tmp_path, ["equal-cost"])
    assert paths == []
    assert [line.partition(":")[0] for line in missing] == ["equal-cost"]


def test_exit_shares_and_memorized_layers_by_hand(results):
    own = exit_shares(results).query("task == 'mcid' and label == 'deebert'")
    assert own["share"].sum() == pytest.approx(1)
    assert (own["share"] * own["layer"]).sum() == pytest.approx(3), "at twice the speed"
    mixtures = comparison_of(results).per_seed.query("task == 'mcid' and label == 'deebert' and speedup == 2")
    counts = memorized_against_exit(results, mixtures)
    # Of 200 rows and both seeds 88, 123, 150, 171 and 178 are right at layers 1 to 5.
    assert counts.sum(axis=1) == pytest.approx([176, 70, 54, 42, 14, 44])


def test_colours_stand_for_the_network_of_the_exits():
    attention = {"deebert", "calm-softmax"}
    cells = [
        (r.model_copy(update={"exit_network": "attention" if r.label in attention else "linear"}), frames)
        for r, frames in made_up_suite()
    ]
    colours = palette(results_of(cells))
    assert colours["deebert"] == colours["calm-softmax"] != colours["pabee"] == colours["consistentee"]
    assert colours["static"] == colours["random"] not in (colours["deebert"], colours["pabee"])


def test_axes_have_units(results):
    equal_cost, exits = (draw_figure(name, results) for name in ("equal-cost", "exits"))
    assert equal_cost.get_supxlabel() == "points against the full model, mean of 2 tasks"
    assert exits.axes[-1].get_xlabel() == "share of test rows", "the colour bar"


def test_a_task_that_hardly_any_method_was_run_on_has_no_panel():
    records = [*made_up_suite(), *(one for one in made_up_suite(task="stsb") if one[0].label in ("full", "static"))]
    titles = {axes.get_title() for axes in draw_figure("exits", results_of(records)).axes}
    assert ("mcid" in titles, "stsb" in titles) == (True, False)
