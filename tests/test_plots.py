import numpy as np
import pytest
from matplotlib.image import imread
from records_by_hand import cell, curve_point, made_up_suite, operating_point, stored, timing, write_results

from benchmarks.analysis.figures.curves import curve_on_test, figure, save_figure, score_limits
from benchmarks.analysis.figures.styles import bold_curves, styles
from benchmarks.analysis.results import load_panels, panels


@pytest.fixture(scope="module")
def panel():
    cells = made_up_suite()
    (found,) = panels([stored(record) for record in cells], [timing(cells)])
    return found


def test_every_method_has_its_own_colour_marker_and_references_are_grey(panel):
    found = styles([panel])
    competitors = [style for style in found.values() if style.marker]
    assert len(competitors) == 7
    assert len({style.marker for style in competitors}) == 7
    assert len({str(style.line) for style in competitors}) == 7
    assert len({style.colour for style in competitors}) == 7
    assert next(iter(found)) == "consistentee"
    for name in ("static", "random", "oracle"):
        assert float(found[name].colour) > 0
        assert found[name].marker is None
    assert "full" not in found
    assert "majority" not in found


@pytest.fixture(scope="module")
def many():
    """A panel of 25 methods; the higher the number, the better the method."""
    cells = [cell(f"method-{i:02}", [operating_point(0.5, "budget 0.50", 3.0, 0.6 + i / 100)]) for i in range(23)]
    cells += [cell(name, [operating_point(0.5, "budget 0.50", 3.0, 0.5)]) for name in ("consistentee", "static")]
    (found,) = panels([stored(record) for record in cells], [])
    return found


def test_no_two_of_many_methods_look_alike(many):
    drawn = [style for style in styles([many]).values() if style.marker]
    assert len(drawn) == 24
    assert len({(style.colour, style.marker) for style in drawn}) == 24
    assert len({(style.colour, str(style.line)) for style in drawn}) == 24


def test_of_many_methods_the_core_and_the_best_stand_out(many):
    bold = bold_curves([many])
    assert bold[0] == "consistentee"
    assert bold[1:] == [f"method-{i:02}" for i in range(22, 15, -1)]
    assert {label for label, style in styles([many]).items() if style.bold and style.marker} == set(bold)
    lines = figure([many]).axes[0].containers
    assert sum(container.has_yerr for container in lines) == len(bold)


def test_few_methods_all_stand_out(panel):
    assert len(bold_curves([panel])) == 7


def test_the_curve_of_one_cell_is_its_whole_test_curve(panel):
    curve = curve_on_test(panel, "deebert")
    assert len(curve.layers) == 21
    assert (np.diff(curve.layers) >= 0).all()


def test_the_curve_of_a_grid_is_chosen_on_validation_data():
    good = [curve_point(0.1, 2.0, 0.7), curve_point(0.2, 4.0, 0.9)]
    bad = [curve_point(0.1, 2.0, 0.6), curve_point(0.2, 4.0, 0.8)]
    lucky = [curve_point(0.1, 2.0, 0.95), curve_point(0.2, 4.0, 0.99)]
    points = [operating_point(0.1, "budget 0.50", 2.0, 0.7)]
    first = cell("consistentee", points, curve=good, parameters={"alpha": 1})
    second = cell("consistentee", points, curve=bad, parameters={"alpha": 2})
    second = second.model_copy(update={"curve_test": lucky})
    (found,) = panels([stored(first), stored(second)], [])
    assert curve_on_test(found, "consistentee").scores.tolist() == [0.7, 0.9]


def test_seeds_are_averaged_knob_by_knob():
    points = [operating_point(0.1, "budget 0.50", 2.0, 0.7)]
    cells = [cell("pabee", points, curve=[curve_point(1, 2.0, 0.6 + 0.1 * seed)], seed=seed) for seed in (0, 1)]
    (found,) = panels([stored(record) for record in cells], [])
    assert curve_on_test(found, "pabee").scores == pytest.approx([0.65])


def test_limits_hold_every_competitor(panel):
    low, high = score_limits(panel, styles([panel]))
    assert low < 42
    assert high > 94


def test_figure_has_both_views_of_every_panel(panel):
    drawn = figure([panel] * 5)
    visible = [axes for axes in drawn.axes if axes.get_visible()]
    assert len(visible) == 10
    assert visible[0].get_xlabel() == "average layers"
    assert len(drawn.legends) == 1
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels[0] == "consistentee"
    assert labels[-1] == "full model"


@pytest.mark.parametrize(
    ("timed_seeds", "says"), [((), ["not timed"]), ((0,), ["not timed for every seed"]), ((0, 1), [])]
)
def test_untimed_panels_say_so(timed_seeds, says):
    suites = {seed: made_up_suite(seed=seed) for seed in (0, 1)}
    cells = [stored(record) for suite in suites.values() for record in suite]
    (found,) = panels(cells, [timing(suites[seed], seed=seed) for seed in timed_seeds])
    assert [text.get_text() for axes in figure([found]).axes for text in axes.texts] == says


def test_write_curves(tmp_path):
    write_results(tmp_path)
    found, _ = load_panels(tmp_path)
    png, pdf = save_figure(figure(found), tmp_path, kinds=("png", "pdf"))
    height, width = imread(png).shape[:2]
    assert min(height, width) > 900
    assert imread(png)[..., :3].std() > 0.05
    assert pdf.read_bytes().startswith(b"%PDF")
