import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_by_hand import cell, operating_point, stored
from scipy.stats import binom

from benchmarks.analysis.statistics import budget_of, choose, mean_and_std, paired_test, points_of, targets

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


def grid(*cells):
    """Cells of one label that differ in alpha."""
    return [stored(cell("consistentee", points, parameters={"alpha": i})) for i, points in enumerate(cells)]


def test_targets_put_budgets_first_and_split_shared_points():
    cells = grid(
        [operating_point(0.1, "budget 0.50, within 1 point", 3, 0.8)], [operating_point(0.2, "budget 0.25", 1.5, 0.6)]
    )
    assert targets(cells) == ["budget 0.25", "budget 0.50", "within 1 point"]
    assert budget_of("budget 0.25") == 0.25
    assert budget_of("within 1 point") is None


def test_a_budget_takes_the_best_validation_score_within_it_over_the_grid():
    cells = grid(
        [operating_point(0.1, "budget 0.50", 3.0, 0.80)],
        [operating_point(0.2, "budget 0.50", 2.5, 0.83)],
        [operating_point(0.3, "budget 0.75", 4.5, 0.90)],  # over the budget
    )
    choice = choose(cells, "budget 0.50")
    assert choice is not None
    assert choice.cell.record.parameters == {"alpha": 1}


def test_a_budget_may_be_met_by_a_point_chosen_for_a_smaller_one():
    cells = grid([operating_point(0.1, "budget 0.25", 1.5, 0.90), operating_point(0.5, "budget 0.50", 3.0, 0.85)])
    choice = choose(cells, "budget 0.50")
    assert choice is not None
    assert choice.point.knob == 0.1


def test_equal_scores_take_fewer_layers():
    cells = grid([operating_point(0.1, "budget 0.50", 3.0, 0.8)], [operating_point(0.2, "budget 0.50", 2.0, 0.8)])
    choice = choose(cells, "budget 0.50")
    assert choice is not None
    assert choice.point.knob == 0.2


def test_within_one_point_takes_fewest_layers_near_the_best_full_depth():
    cells = grid(
        [operating_point(0.1, "within 1 point", 2.0, 0.80), operating_point(1.0, "budget 0.75", 4.5, 0.80)],
        [operating_point(0.2, "within 1 point", 3.0, 0.90), operating_point(1.0, "budget 0.75", 4.5, 0.905)],
    )
    choice = choose(cells, "within 1 point")
    assert choice is not None
    assert choice.point.knob == 0.2


def test_selection_never_looks_at_the_test_split():
    good = operating_point(0.1, "budget 0.50", 3.0, 0.8)
    lucky = operating_point(0.2, "budget 0.50", 3.0, 0.7)
    lucky = lucky.model_copy(update={"test": lucky.test.model_copy(update={"scores": {"accuracy": 0.99}})})
    choice = choose(grid([good], [lucky]), "budget 0.50")
    assert choice is not None
    assert choice.point.knob == 0.1


def test_no_point_meets_the_target():
    assert choose(grid([operating_point(0.1, "budget 0.75", 4.5, 0.8)]), "budget 0.25") is None


def test_mean_and_std():
    assert mean_and_std([0.5]) == (0.5, None)
    mean, deviation = mean_and_std([0.4, 0.6])
    assert mean == pytest.approx(0.5)
    assert deviation == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_points_of_a_curve():
    record = cell("static", [operating_point(1, "budget 0.25", 1.5, 0.6)])
    assert points_of(record.curve_test, "accuracy") == ([1.5], [0.6])


def test_mcnemar_by_hand():
    first = [True] * 9 + [False] + [True] * 20
    second = [False] * 9 + [True] + [True] * 20
    test = paired_test(first, second)
    assert (test.only_first, test.only_second, test.rows) == (9, 1, 30)
    assert test.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert test.difference == pytest.approx(8 / 30)


def test_equal_answers_differ_in_nothing():
    test = paired_test([True, False, True], [True, False, True])
    assert (test.difference, test.p_value) == (0.0, 1.0)


@given(answers)
def test_swapping_the_methods_swaps_the_result(pairs):
    first, second = zip(*pairs, strict=True)
    one, other = paired_test(first, second), paired_test(second, first)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.difference == pytest.approx(-other.difference)


def test_other_rows_cannot_be_paired():
    with pytest.raises(ValueError, match="same rows"):
        paired_test([True], [True, False])
