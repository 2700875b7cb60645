"""Calibration: p-values by hand, the fixed-sequence test, and the promise on losses whose risk is known."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binom

from consistentee.errors import UserError
from consistentee.methods.calibration import binomial, hoeffding_bentkus, learn_then_test, textual_losses


def test_p_values_by_hand():
    divergence = 0.1 * math.log(0.1 / 0.5) + 0.9 * math.log(0.9 / 0.5)
    assert hoeffding_bentkus(0.1, 10, 0.5) == pytest.approx(math.exp(-10 * divergence))  # Hoeffding: 0.0252 < 0.0292
    assert hoeffding_bentkus(0.0, 28, 0.1) == pytest.approx(0.9**28)
    bentkus = math.e * binom.cdf(40, 100, 0.5)
    for mean in (0.4, 0.3951, 0.4 + 1e-12):  # a sum between two whole numbers is rounded up, but for rounding errors
        assert hoeffding_bentkus(mean, 100, 0.5) == pytest.approx(bentkus)
    for not_below_delta in (0.5, 1.0):
        assert hoeffding_bentkus(not_below_delta, 100, 0.5) == 1.0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 500), st.floats(0.01, 0.99))
def test_more_loss_never_proves_more(first, second, count, delta):
    less, more = sorted((first, second))
    assert 0 <= hoeffding_bentkus(less, count, delta) <= hoeffding_bentkus(more, count, delta) + 1e-12 <= 1 + 2e-12


@given(st.integers(1, 100_000), st.floats(0, 1), st.floats(0.001, 0.999))
def test_the_binomial_test_is_that_of_scipy(count, share, delta):
    losses = round(share * count)
    assert binomial(losses / count, count, delta) == pytest.approx(
        binom.cdf(losses, count, delta), rel=1e-8, abs=1e-300
    )


def table(*means: float, prompts: int = 100) -> np.ndarray:
    """Losses of 0 and 1 with the given mean at each threshold."""
    return np.array([[float(row < mean * prompts) for mean in means] for row in range(prompts)])


def test_the_last_threshold_before_the_first_failure_is_kept():
    assert learn_then_test(table(0.0, 0.0, 0.0), delta=0.1) == 2
    assert learn_then_test(table(0.0, 0.01, 0.3, 0.0), delta=0.1) == 1  # the fourth would pass
    assert learn_then_test(table(0.09, 0.0, 0.0), delta=0.1) == -1
    assert learn_then_test(table(0.0, 0.0, prompts=5), delta=0.1) == -1  # 0.9 ** 5 > 0.05


@pytest.mark.parametrize(
    ("losses", "delta", "epsilon", "message"),
    [
        ([[0.0, float("nan")]], 0.1, 0.05, "losses in 0..1"),
        ([0.1, 0.2], 0.1, 0.05, "every prompt and threshold"),
        ([[0.1]], 0.0, 0.05, "delta"),
        ([[0.1]], 0.1, 1.0, "epsilon"),
    ],
)
def test_what_cannot_be_calibrated_is_said(losses, delta, epsilon, message):
    with pytest.raises(UserError, match=message):
        learn_then_test(losses, delta, epsilon)


def test_textual_losses_by_hand():
    """ROUGE-L of "a b c d" against "a c d e": the common subsequence has 3 words of 4 and 4, so F = 0.75."""
    texts, full = ["a b c d", "the same", "?!", "nothing shared"], ["a c d e", "the same", "?!", "other words"]
    assert textual_losses(texts, full) == pytest.approx([0.25, 0.0, 0.0, 1.0])
