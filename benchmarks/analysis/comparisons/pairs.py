"""Methods against each other on the same rows: paired tests and intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from benchmarks.analysis.panels.results import CORE_METHOD, FULL, REFERENCES, Panel
from benchmarks.analysis.rows.choices import Choice, choose_point, reference_of, targets_of
from benchmarks.analysis.rows.instances import Answers, answers_of
from benchmarks.measure.intervals import can_resample, interval, mean_over_drawn_seeds, resampled_scores
from benchmarks.specs.targets import Target
from consistentee.errors import UserError


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same rows.

    Attributes:
        only_first, only_second: rows that only one of them has right.
        p_value: exact McNemar test, two-sided, not corrected for the number of tests.
    """

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """A paired test between the operating points that two curves have for one target.

    Attributes:
        target: what both were chosen for.
        first, second: labels.
        seeds: the seeds that both have.
        difference: score of the first minus score of the second in the task's metric, averaged over seeds.
        interval: 95% paired bootstrap interval of that, over rows and seeds; None for a metric of ranks.
        seed: the seed of ``test``.
        test: which rows each has right, and McNemar's test, on one seed; None for a regression.
    """

    target: Target
    first: str
    second: str
    seeds: tuple[int, ...]
    difference: float
    interval: tuple[float, float] | None
    seed: int
    test: PairedTest | None


def paired_comparisons(panel: Panel) -> list[Comparison]:
    """Test the core method against every other one that shares a target with it, on the same test rows.

    Without the core method, the first curve is tested against the others.
    """
    methods = panel.methods
    curves = [label for label, method in methods.items() if method not in (FULL, *REFERENCES)]
    if len(curves) < 2:
        return []
    first = next((label for label in curves if methods[label] == CORE_METHOD), curves[0])
    others = [label for label in curves if label != first]
    shared = targets_of(panel.cells_of(first))
    found = [_compare(panel, target, first, second) for target in shared for second in others]
    return [comparison for comparison in found if comparison is not None]


def _compare(panel: Panel, target: Target, first: str, second: str) -> Comparison | None:
    pairs = [
        (one, other)
        for seed in panel.seeds_of(first)
        if (one := _choice(panel, first, seed, target)) is not None
        and (other := _choice(panel, second, seed, target)) is not None
    ]
    if not pairs:
        return None
    try:
        answers = [(answers_of(one), answers_of(other)) for one, other in pairs]
    except UserError:  # predictions are gone: the tables still stand
        return None
    labels = answers[0][0].labels
    if any(not np.array_equal(labels, side.labels) for pair in answers for side in pair):
        return None  # other rows
    categorical = panel.metric not in ("pearson", "spearman")
    return Comparison(
        target=target,
        first=first,
        second=second,
        seeds=tuple(one.cell.record.seed for one, _ in pairs),
        difference=float(np.mean([_test_score(one) - _test_score(other) for one, other in pairs])),
        interval=_interval_of_difference(panel.metric, answers),
        seed=pairs[0][0].cell.record.seed,
        test=paired_test(*(side.predictions == labels for side in answers[0])) if categorical else None,
    )


def _choice(panel: Panel, label: str, seed: int, target: Target) -> Choice | None:
    cells = panel.cells_of(label, seed)
    return choose_point(cells, target, reference_of(panel, label, seed)) if cells else None


def _test_score(choice: Choice) -> float:
    return choice.point.test.scores[choice.cell.record.metric]


def _interval_of_difference(metric: str, answers: Sequence[tuple[Answers, Answers]]) -> tuple[float, float] | None:
    labels = answers[0][0].labels
    if not can_resample(metric, labels):
        return None
    both = [side.predictions for pair in answers for side in pair]
    scores = resampled_scores(metric, labels, both)
    return interval(mean_over_drawn_seeds(scores[:, ::2] - scores[:, 1::2]))


def paired_test(first_correct: ArrayLike, second_correct: ArrayLike) -> PairedTest:
    """Compare two methods by which rows each has right: bool [N] and bool [N], in the same order."""
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired test needs the same rows, got {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        p_value=float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0,
    )


def holm(p_values: ArrayLike) -> list[float]:
    """Correct p-values for their number by Holm's procedure: the i-th smallest of n is multiplied by ``n - i + 1``.

    A larger one is never corrected to less than a smaller one, and none to more than 1.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return [float(value) for value in corrected]
