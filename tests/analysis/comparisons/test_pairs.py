import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.analysis.comparisons.pairs import paired_test
from benchmarks.analysis.rows.base import mean_and_std

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


def test_mean_and_std():
    assert mean_and_std([0.5]) == (0.5, None)
    mean, deviation = mean_and_std([0.4, 0.6])
    assert mean == pytest.approx(0.5)
    assert deviation == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_mcnemar_by_hand():
    first = [True] * 9 + [False] + [True] * 20
    second = [False] * 9 + [True] + [True] * 20
    test = paired_test(first, second)
    assert (test.only_first, test.only_second) == (9, 1)
    assert test.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))


def test_equal_answers_differ_in_nothing():
    test = paired_test([True, False, True], [True, False, True])
    assert (test.only_first, test.only_second, test.p_value) == (0, 0, 1.0)


@given(answers)
def test_swapping_the_methods_swaps_the_result(pairs):
    first, second = zip(*pairs, strict=True)
    one, other = paired_test(first, second), paired_test(second, first)
    assert one.p_value == pytest.approx(other.p_value)
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)


def test_other_rows_cannot_be_paired():
    with pytest.raises(ValueError, match="same rows"):
        paired_test([True], [True, False])
