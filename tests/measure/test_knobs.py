"""Neighbouring knobs are mixed to meet a budget exactly; the knob of a saved model loses little."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from benchmarks.measure.knobs import Reach, around_budgets, cheapest_within, neighbours, refine_knobs

LAYERS = 12
# Costs of 176 rows: means of counts, of which many are equal.
costs = st.lists(st.integers(176, 176 * LAYERS).map(lambda layers: layers / 176), min_size=1, max_size=25)


def mixture(cost: object, budget: float) -> tuple[int, int, float, Reach]:
    first, second, weight, reach = (np.ravel(part)[0] for part in neighbours(cost, budget))
    return int(first), int(second), float(weight), reach


def test_the_two_knobs_around_a_budget_are_mixed_whatever_their_order():
    assert mixture([6.0, 1.0, 3.0, 2.0], 2.5) == (3, 2, 0.5, Reach.MET)
    assert mixture([6.0, 1.0, 3.0, 2.0], 3.0) == (2, 2, 1.0, Reach.MET), "a knob on the budget stands alone"
    assert mixture([2.0, 2.0, 4.0, 4.0], 3.0) == (0, 2, 0.5, Reach.MET), "the first of equal costs counts"
    assert mixture([4.0, 3.0], 2.0) == (1, 1, 1.0, Reach.OVER)
    assert mixture([4.0, 3.0], 5.0) == (0, 0, 1.0, Reach.UNDER)
    with pytest.raises(ValueError, match="nothing to mix"):
        neighbours([], 3.0)


@given(costs, st.floats(0.5, LAYERS + 1))
def test_a_mixture_costs_the_budget_and_no_knob_lies_between_its_two(found, budget):
    cost = np.array(found)
    first, second, weight, reach = mixture(cost, budget)
    assert 0 <= weight <= 1
    assert not ((cost > cost[first] + 1e-8) & (cost < cost[second] - 1e-8)).any()
    mixed = weight * cost[first] + (1 - weight) * cost[second]
    expected = {Reach.MET: budget, Reach.OVER: cost.min(), Reach.UNDER: cost.max()}[Reach(reach)]
    assert mixed == pytest.approx(expected)
    assert (reach == Reach.MET) == (cost.min() - 1e-9 <= budget <= cost.max() + 1e-9)


def test_knobs_around_three_budgets_begin_with_the_middle_one():
    assert around_budgets([1.0, 2.5, 3.5, 5.0], 6, "classification") == [1, 2, 3, 0]
    assert around_budgets([2.9, 3.0, 3.1, 6.0], 6, "classification", margin=0.1)[:2] == [0, 3]


def test_the_cheapest_knob_that_loses_little_is_saved():
    layers, scores = [3.0, 2.0, 6.0, 12.0], [0.80, 0.80, 0.895, 0.90]
    assert cheapest_within(0.01, layers, scores) == 2
    assert cheapest_within(0.1, layers, scores) == 1
    assert cheapest_within(0.0, layers, scores) == 3


def test_refined_knobs_have_a_hundred_points_where_the_signal_allows():
    signals = np.concatenate([np.linspace(0.5, 0.999, 200), 1 - np.geomspace(1e-3, 1e-6, 200)])

    def layers_of(knobs, signals=signals):  # of two; a row stays below the knob
        return [1 + np.mean(signals < knob) for knob in knobs]

    found = refine_knobs([0.0, 0.9, 0.99, 1.0], layers_of)
    assert (found[0], found[-1], found) == (0.0, 1.0, sorted(found))
    assert len(found) == len(set(layers_of(found))) >= 100
    assert max(np.diff(layers_of(found))) <= 0.01 + 1e-9
    three = refine_knobs([0.0, 0.9, 1.0], lambda knobs: layers_of(knobs, np.repeat([0.3, 0.7], 9)))
    assert three == pytest.approx([0.0, 0.5, 1.0], abs=0.2), "the middle one is far from both signals"
