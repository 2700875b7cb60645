"""The curves: what is drawn of a method, what is told apart, and that figures fit a printed page."""

import numpy as np
import pytest
from matplotlib.image import imread
from records_by_hand import cell, curve_point, made_up_suite, operating_point, stored, timing, write_results

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.figures.catalogue import CURVES, save_pages
from benchmarks.analysis.figures.curves import curve_on_test, figure, score_limits, times_figure
from benchmarks.analysis.figures.page import MOST_PANELS, TEXT, pages_of, save_figure
from benchmarks.analysis.figures.styles import OTHERS, styles
from benchmarks.analysis.panels.results import load_panels, panels


@pytest.fixture(scope="module")
def panel():
    cells = made_up_suite()
    (found,) = panels([stored(record) for record in cells], [timing(cells)])
    return found


def test_few_methods_all_have_a_look_of_their_own_and_references_are_grey(panel):
    found = styles([panel])
    competitors = [style for style in found.values() if style.marker]
    assert len(competitors) == 7
    assert len({style.marker for style in competitors}) == 7
    assert len({str(style.line) for style in competitors}) == 7
    assert len({style.colour for style in competitors}) == 7
    assert found["consistentee"].width == max(style.width for style in competitors)
    for name in ("static", "random"):
        assert float(found[name].colour) > 0
        assert found[name].marker is None
    assert not {"full", "majority", "oracle"} & set(found)


@pytest.fixture(scope="module")
def many():
    """A panel of 25 methods; the higher the number, the better the method."""
    cells = [cell(f"method-{i:02}", [operating_point(0.5, "budget 0.50", 3.0, 0.6 + i / 100)]) for i in range(23)]
    cells += [cell(name, [operating_point(0.5, "budget 0.50", 3.0, 0.5)]) for name in ("consistentee", "static")]
    (found,) = panels([stored(record) for record in cells], [])
    return found


def test_of_many_methods_the_core_and_the_best_are_told_apart(many):
    found = styles([many])
    assert [label for label, style in found.items() if style.marker] == [
        *(f"method-{i:02}" for i in range(22, 17, -1)),
        "consistentee",
    ]
    assert [label for label, style in found.items() if style == OTHERS] == [f"method-{i:02}" for i in range(17, -1, -1)]
    (legend,) = figure([many]).legends
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["full model", "18 other methods"]


def test_no_two_that_are_told_apart_look_alike():
    ours = [cell(f"consistentee-{i}", [operating_point(0.5, "budget 0.50", 3.0, 0.5)]) for i in range(4)]
    others = [cell(f"method-{i}", [operating_point(0.5, "budget 0.50", 3.0, 0.9)]) for i in range(6)]
    (found,) = panels([stored(record) for record in [*ours, *others]], [])
    told_apart = [style for style in styles([found]).values() if style.marker]
    assert len(told_apart) == 5 + 3
    assert len({(style.colour, style.open_marker) for style in told_apart}) == len(told_apart)


def test_references_of_one_role_are_told_apart_and_the_one_of_that_name_has_no_marker():
    points = [operating_point(0.5, "budget 0.50", 3.0, 0.5)]
    cells = [cell(label, points, method="static") for label in ("static", "another-recipe", "third-recipe")]
    (found,) = panels([stored(record) for record in [*cells, cell("consistentee", points)]], [])
    looks = styles([found])
    references = [looks[label] for label in ("static", "another-recipe", "third-recipe")]
    assert references[0].marker is None
    assert len({style.marker for style in references}) == 3
    assert {style.colour for style in references} == {looks["static"].colour}


def test_the_curve_of_one_cell_is_the_hull_of_its_validation_curve(panel):
    (record,) = [found.record for found in panel.cells if found.record.label == "deebert"]
    curve = curve_on_test(panel, "deebert")
    whole = [(point.average_layers, point.scores["accuracy"]) for point in record.curve_test]
    assert set(zip(curve.layers, curve.scores, strict=True)) <= set(whole)
    assert (np.diff(curve.budgets) > 0).all()


def test_what_a_curve_says_at_a_budget_is_what_the_table_says(panel):
    for speedup in (1.5, 2.0, 3.0):
        expected = at_equal_cost(panel, "deebert", speedup)
        assert curve_on_test(panel, "deebert").at(6 / speedup) == pytest.approx((expected.layers, expected.score))


def test_a_grid_is_one_curve_that_validation_data_chose():
    good = [curve_point(0.1, 2.0, 0.7), curve_point(0.2, 4.0, 0.9)]
    bad = [curve_point(0.1, 2.0, 0.6), curve_point(0.2, 4.0, 0.8)]
    lucky = [curve_point(0.1, 2.0, 0.95), curve_point(0.2, 4.0, 0.99)]
    points = [operating_point(0.1, "budget 0.50", 2.0, 0.7)]
    first = cell("consistentee", points, curve=good, parameters={"alpha": 1})
    second = cell("consistentee", points, curve=bad, parameters={"alpha": 2})
    second = second.model_copy(update={"curve_test": lucky})
    (found,) = panels([stored(first), stored(second)], [])
    curve = curve_on_test(found, "consistentee")
    assert curve.scores.tolist() == [0.7, 0.9]
    assert curve.at(3.0) == (3.0, pytest.approx(0.8))  # half of the rows take either knob


def test_seeds_are_averaged_budget_by_budget():
    points = [operating_point(0.1, "budget 0.50", 2.0, 0.7)]
    curves = [[curve_point(1, 2.0, 0.6), curve_point(2, 4.0, 0.8)], [curve_point(1, 3.0, 0.8)]]
    cells = [cell("pabee", points, curve=curve, seed=seed) for seed, curve in enumerate(curves)]
    (found,) = panels([stored(record) for record in cells], [])
    assert curve_on_test(found, "pabee").budgets.tolist() == [2.0, 3.0, 4.0]
    assert curve_on_test(found, "pabee").scores == pytest.approx([0.7, 0.75, 0.8])
    assert curve_on_test(found, "pabee").layers == pytest.approx([2.5, 3.0, 3.5])


def test_limits_hold_what_is_told_apart_at_the_cheapest_budget(panel):
    low, high = score_limits(panel, styles([panel]))
    assert low < 100 * min(curve_on_test(panel, label).at(2.0)[1] for label in ("deebert", "consistentee"))
    assert high > 91


def test_a_figure_is_as_wide_as_the_text_with_one_legend(panel):
    for drawn, axis in ((figure([panel] * 5), "average layers"), (times_figure([panel] * 5), "milliseconds a row")):
        visible = [axes for axes in drawn.axes if axes.get_visible()]
        assert len(visible) == 5
        assert visible[0].get_xlabel() == axis
        assert len(drawn.legends) == 1
        assert drawn.get_figwidth() == TEXT
        assert {axes.title.get_fontsize() for axes in visible} == {8}


def test_many_tasks_make_several_figures_of_like_size(panel, tmp_path):
    assert [len(page) for page in pages_of(range(11))] == [6, 5]
    assert [len(page) for page in pages_of(range(MOST_PANELS))] == [MOST_PANELS]
    assert pages_of([]) == []
    drawn = CURVES.figures([panel] * 11, styles([panel]))
    assert [sum(axes.get_visible() for axes in page.axes) for page in drawn] == [6, 5]
    assert [path.name for path in save_pages(CURVES, drawn, tmp_path)] == ["curves-1.png", "curves-2.png"]


@pytest.mark.parametrize(("timed_seeds", "says"), [((0,), ["times of seed 0 alone"]), ((0, 1), [])])
def test_panels_of_which_some_seeds_are_timed_say_so(timed_seeds, says):
    suites = {seed: made_up_suite(seed=seed) for seed in (0, 1)}
    cells = [stored(record) for suite in suites.values() for record in suite]
    (found,) = panels(cells, [timing(suites[seed], seed=seed) for seed in timed_seeds])
    assert [text.get_text() for axes in times_figure([found]).axes for text in axes.texts] == says


def test_without_times_there_is_no_figure_of_times():
    (found,) = panels([stored(record) for record in made_up_suite()], [])
    assert times_figure([found]) is None


def test_files_are_of_all_formats_with_letters_inside(tmp_path):
    write_results(tmp_path)
    found, _ = load_panels(tmp_path)
    words = {"title": "Score against layers", "shows": "For every task, lines."}
    png, pdf, svg = save_figure(figure(found), tmp_path, "curves", kinds=("png", "pdf", "svg"), **words)
    assert b"For every task, lines." in png.read_bytes()
    assert b"For every task, lines." in svg.read_bytes()
    assert png.read_bytes()[25] == 3  # the type of colour in its header: a palette, a third of the size
    pixels = imread(png)
    assert pixels.shape[1] == 300 * TEXT
    assert pixels[..., :3].std() > 0.05
    text = pdf.read_bytes()
    assert text.startswith(b"%PDF")
    assert b"/FontFile2" in text  # TrueType
    assert b"/Type3" not in text
    assert b"<text" not in svg.read_bytes()  # outlines
    again = save_figure(figure(found), tmp_path, "again", kinds=("png", "pdf", "svg"), **words)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in (png, pdf, svg)]
