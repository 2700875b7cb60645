import numpy as np
import pytest
from scipy.stats import bootstrap

from benchmarks.analysis.statistics import (
    holm,
    interval,
    mean_over_drawn_seeds,
    over_any_task,
    p_value,
    resampled_means,
)
from benchmarks.measure.terms import has_terms, score_of_means, terms_of
from consistentee.data.metrics import score

ROWS = 300


def rows_of(metric, seed=0):
    """Labels [N] and predictions [N] that agree in most rows."""
    generator = np.random.default_rng(seed)
    if metric == "pearson":
        labels = generator.normal(size=ROWS)
        return labels, labels + generator.normal(size=ROWS)
    labels = generator.integers(2, size=ROWS)
    return labels, np.where(generator.random(ROWS) < 0.8, labels, 1 - labels)


def score_interval(metric, labels, predictions):
    """The interval of a score over rows, of predictions [N]; of several seeds' mean, [seeds, N], over seeds as well."""
    terms = np.stack([terms_of(metric, labels, one) for one in np.atleast_2d(np.asarray(predictions))])
    return interval(mean_over_drawn_seeds(score_of_means(metric, resampled_means(terms))))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson"])
def test_a_resample_scores_what_the_metric_scores_on_those_rows(metric, monkeypatch):
    labels, predictions = rows_of(metric)
    drawn = np.random.default_rng(1).integers(ROWS, size=(4, ROWS))
    counts = np.stack([np.bincount(rows, minlength=ROWS) for rows in drawn])
    monkeypatch.setattr("benchmarks.analysis.statistics.resample_counts", lambda *_: counts.T.astype(float))
    terms = terms_of(metric, labels, predictions)
    found = score_of_means(metric, resampled_means(np.stack([terms, terms]), resamples=len(drawn)))
    expected = [score(metric, labels[rows], predictions[rows]) for rows in drawn]
    assert found == pytest.approx(np.stack([expected, expected]))


def test_one_seed_gives_scipys_bootstrap_over_rows():
    labels, predictions = rows_of("accuracy")
    correct = (labels == predictions).astype(float)
    theirs = bootstrap((correct,), np.mean, n_resamples=1000, method="percentile", rng=0).confidence_interval
    assert score_interval("accuracy", labels, predictions) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert score_interval("accuracy", labels, [predictions]) == score_interval("accuracy", labels, predictions)


def test_several_seeds_give_scipys_two_sample_bootstrap():
    labels, _ = rows_of("accuracy")
    answers = np.stack([rows_of("accuracy", seed=0)[1] ^ (np.arange(ROWS) < 15 * k) for k in range(4)])
    correct = (answers == labels).astype(float)

    def mean(rows, seeds, axis=-1):
        assert axis == -1
        return correct[seeds[..., :, None], rows[..., None, :]].mean(axis=(-2, -1))

    samples = np.arange(ROWS), np.arange(len(answers))
    theirs = bootstrap(samples, mean, n_resamples=2000, batch=200, method="percentile", vectorized=True, rng=0)
    assert score_interval("accuracy", labels, answers) == pytest.approx(
        (theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.01
    )


def test_scores_of_ranks_and_of_many_classes_have_no_terms():
    assert not has_terms("spearman", [0.1, 0.2])
    assert not has_terms("matthews", [0, 1, 2])
    assert has_terms("accuracy", [0, 1, 2])


def test_tasks_that_differ_widen_the_interval_over_any_task():
    samples = np.stack([np.full(1000, points) for points in (-1.0, 0.0, 1.0)])
    low, high = interval(over_any_task(samples))
    assert (low, high) == pytest.approx((-1, 1))
    assert np.isnan(over_any_task(samples[:1])).all()


def test_p_values_and_holm_by_hand():
    assert p_value(np.array([1.0, 2.0, 3.0, -1.0])) == pytest.approx(2 * 2 / 5)
    assert p_value(np.zeros(9)) == 1
    assert p_value(np.ones(999)) == pytest.approx(0.002)

    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([]).size == 0
