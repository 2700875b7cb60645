import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.analysis.panels.curves import area_under_front, pareto_front, speedups, time_ratio

histograms = st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(lambda counts: sum(counts) > 0)
scores = st.integers(0, 100).map(lambda n: n / 100)
curves = st.lists(st.tuples(st.integers(10, 60).map(lambda n: n / 10), scores), min_size=1, max_size=20)


def test_speedups_give_every_meaning_its_name():
    found = speedups(
        2.5,
        4,
        flops=50.0,
        full_flops=100.0,
        seconds={1: [1.0, 2.0, 3.0], 32: [1.0]},
        full_seconds={1: [2.0, 6.0, 6.0]},
    )
    assert found.average_layers == 2.5
    assert found.saved_fraction == 1 - 2.5 / 4
    assert found.layer_ratio == 4 / 2.5
    assert found.flops_ratio == 2.0
    assert found.time_ratios == {1: 2.0}  # per round 2, 3, 2; batch 32 has no full model to compare with


def test_a_cascade_is_measured_by_the_layers_of_the_stock_model():
    found = speedups((2 + 3 * 8) / 4, 6)  # a companion of 2 layers before 6 others
    assert found.average_layers == 6.5
    assert found.saved_fraction == pytest.approx(-0.5 / 6)
    assert found.layer_ratio == pytest.approx(6 / 6.5)


def test_speedups_without_flops_and_clock():
    found = speedups(1.5, 2)
    assert found.flops_ratio is None
    assert found.time_ratios == {}
    assert speedups(1.0, 2, flops=0.0, full_flops=10.0).flops_ratio is None


@given(histograms)
def test_speedups_are_consistent_and_bounded(counts):
    layers = np.arange(1, len(counts) + 1) @ counts / sum(counts)
    found = speedups(float(layers), len(counts))
    assert 1 <= found.average_layers <= len(counts)
    assert 0 <= found.saved_fraction < 1
    assert found.layer_ratio >= 1
    assert found.layer_ratio * (1 - found.saved_fraction) == pytest.approx(1)


def test_time_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    assert time_ratio([4.0, 1.0, 9.0], [1.0, 1.0, 3.0]) == 3.0
    with pytest.raises(ValueError, match="same rounds"):
        time_ratio([1.0], [1.0, 2.0])


@given(curves)
def test_pareto_front_beats_every_other_point(points):
    costs, values = map(np.asarray, zip(*points, strict=True))
    front = pareto_front(costs, values)
    assert (np.diff(costs[front]) > 0).all()
    assert (np.diff(values[front]) > 0).all()
    for cost, value in points:
        assert ((costs[front] <= cost) & (values[front] >= value)).any()


@given(curves, st.randoms())
def test_area_does_not_depend_on_order_and_lies_between_floor_and_best(points, random):
    shuffled = random.sample(points, len(points))
    area = area_under_front(*zip(*points, strict=True), lowest=1, highest=6)
    assert area == pytest.approx(area_under_front(*zip(*shuffled, strict=True), lowest=1, highest=6))
    assert -1e-9 <= area <= max(value for _, value in points) + 1e-9


@given(curves)
def test_a_perfect_first_layer_leaves_nothing_to_gain(points):
    area = area_under_front(*zip(*points, (1.0, 1.0), strict=True), lowest=1, highest=6)
    assert area == pytest.approx(1.0)


def test_area_by_hand():
    # A line from 0 at cost 1 to 0.5 at cost 2, another one to 1.0 at cost 4, then 1.0: (0.25 + 1.5 + 2) / 5.
    assert area_under_front([2, 4, 5], [0.5, 1.0, 0.9], lowest=1, highest=6) == pytest.approx(3.75 / 5)
    assert area_under_front([2, 4], [0.5, 1.0], lowest=1, highest=6, floor=0.2) == pytest.approx(3.85 / 5)
    assert area_under_front([1, 3], [0.4, 0.8], lowest=2, highest=3) == pytest.approx(0.7)
    assert area_under_front([11], [1.0], lowest=1, highest=6) == pytest.approx(0.25)  # half of a mix, at most
    assert area_under_front([3], [0.1], lowest=1, highest=6, floor=0.2) == pytest.approx(0.2)


def test_area_needs_a_range():
    with pytest.raises(ValueError, match="empty"):
        area_under_front([1], [1], lowest=2, highest=2)
