"""Operating points are chosen on validation data, for a target or to a cost that all methods share."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from benchmarks.specs.knob_choice import Reach, choose, concave_hull, mixture_at, refine_knobs
from benchmarks.specs.targets import FAITHFUL, WITHIN_ONE_POINT, Budget

LAYERS = 12
HALF = Budget(layers_at_most=0.5)
QUARTER = Budget(layers_at_most=0.25)

# Scores and costs of 176 validation rows: means of counts, of which many are collinear.
costs = st.integers(176, 176 * LAYERS).map(lambda layers: layers / 176)
points = st.lists(st.tuples(costs, st.integers(0, 176).map(lambda right: right / 176)), min_size=1, max_size=25)


def test_each_target_by_hand():
    layers, scores = [3.0, 2.0, 6.0, 12.0], [0.80, 0.80, 0.895, 0.90]
    assert choose(HALF, layers, scores, num_layers=LAYERS) == 2
    assert choose(QUARTER, layers, scores, num_layers=LAYERS) == 1, "equal scores: fewer layers"
    assert choose(WITHIN_ONE_POINT, layers, scores, num_layers=LAYERS, reference=0.90) == 2
    assert choose(WITHIN_ONE_POINT, layers, scores, num_layers=LAYERS, reference=0.95) is None
    assert choose(FAITHFUL, layers, scores, num_layers=LAYERS) == 3
    assert choose(Budget(layers_at_most=0.1), layers, scores, num_layers=LAYERS) is None


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


@given(points, st.floats(0.05, 1))
def test_a_budget_is_never_exceeded_and_nothing_within_it_is_better(found, share):
    layers, scores = zip(*found, strict=True)
    index = choose(Budget(layers_at_most=share), layers, scores, num_layers=LAYERS)
    within = [score for cost, score in found if cost <= share * LAYERS]
    if index is None:
        assert not within
    else:
        assert layers[index] <= share * LAYERS + 1e-8
        assert scores[index] >= max(within, default=0)


# ---------------------------------------------------------------------------------------------- equal cost


def test_mixture_by_hand():
    layers, scores = [1.0, 2.0, 3.0, 6.0], [0.5, 0.6, 0.8, 0.9]
    assert concave_hull(layers, scores).tolist() == [0, 2, 3], "0.6 at 2 lies below the line from 0.5 to 0.8"
    mixed = mixture_at(2.5, layers, scores)
    assert (mixed.first, mixed.second, mixed.weight, mixed.reach) == (0, 2, 0.25, Reach.MET)
    assert mixed.of(layers) == 2.5
    assert mixed.of(scores) == pytest.approx(0.725)


def test_collinear_points_and_ties_are_dropped_whatever_their_rounding():
    scores = [k / 176 for k in (100, 103, 106, 121, 136, 136, 130)]
    layers = [1.0, 1.1, 1.2, 1.7, 2.2, 2.2 + 1e-12, 3.0]
    assert concave_hull(layers, scores).tolist() == [0, 4]
    assert concave_hull(layers[::-1], scores[::-1]).tolist() in ([6, 1], [6, 2])
    assert concave_hull([1.0, 1.0 + 1e-12], [0.5, 0.6]).tolist() == [1]


@given(points)
def test_hull_is_concave_rises_and_lies_above_all_points(found):
    cost, score = (np.array(values) for values in zip(*found, strict=True))
    hull = concave_hull(cost, score)
    assert cost[hull[0]] == cost.min()
    assert score[hull[-1]] == score.max()
    assert (np.diff(cost[hull]) > 0).all()
    assert (np.diff(score[hull]) > 0).all()
    assert (np.interp(cost, cost[hull], score[hull]) >= score - 1e-9).all()
    if len(hull) > 2:
        run, rise = np.diff(cost[hull]), np.diff(score[hull])
        assert (rise[:-1] / run[:-1] > rise[1:] / run[1:]).all(), "no three are collinear"


@given(points, st.floats(0.5, LAYERS + 1))
def test_the_mixture_costs_the_budget_unless_it_is_marked(found, budget):
    cost, score = (np.array(values) for values in zip(*found, strict=True))
    mixed = mixture_at(budget, cost, score)
    assert 0 <= mixed.weight <= 1
    if mixed.reach is Reach.MET:
        assert mixed.of(cost) == pytest.approx(budget)
        single = choose(Budget(layers_at_most=budget / LAYERS), cost, score, num_layers=LAYERS)
        assert single is not None
        assert mixed.of(score) >= score[single] - 1e-8, "no single knob within the budget is better"
    elif mixed.reach is Reach.OVER:
        assert budget < cost.min()
        assert mixed.of(cost) == cost.min()
    else:
        assert mixed.of(cost) < budget
        assert mixed.of(score) == score.max()
