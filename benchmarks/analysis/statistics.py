"""Selection on validation data, averages over seeds, and paired tests between methods."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap

from benchmarks.analysis.results import StoredCell
from benchmarks.store.records import WITHIN_ONE_POINT, BaseOperatingPoint, CurvePoint, OperatingPoint

_TIE = 1e-9
_BUDGET = re.compile(r"budget (\d*\.?\d+)")


@dataclass(frozen=True)
class Choice:
    """An operating point and the cell that it belongs to."""

    cell: StoredCell
    point: OperatingPoint


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same rows.

    Attributes:
        rows: number of rows.
        only_first, only_second: rows that only one of them has right.
        difference: accuracy of the first minus accuracy of the second.
        p_value: exact McNemar test, two-sided, not corrected for the number of tests.
    """

    rows: int
    only_first: int
    only_second: int
    difference: float
    p_value: float


def budget_of(target: str) -> float | None:
    """Return the fraction of the layers that a target like ``budget 0.50`` allows, None for other targets."""
    match = _BUDGET.fullmatch(target)
    return float(match.group(1)) if match else None


def targets(cells: Iterable[StoredCell]) -> list[str]:
    """Return what operating points were chosen for: budgets from the smallest, then the others."""
    points = [point for cell in cells for point in cell.record.operating_points]
    found = {target for point in points for target in split_targets(point)}
    budgets = {target: budget_of(target) for target in found}
    return sorted(found, key=lambda target: (budgets[target] is None, budgets[target] or 0.0, target))


def split_targets(point: BaseOperatingPoint) -> list[str]:
    """Return the single reasons why a knob was chosen: equal knobs share one point."""
    return [target.strip() for target in point.chosen_for.split(",")]


def choose(cells: Sequence[StoredCell], target: str) -> Choice | None:
    """Choose among the operating points of one label and seed (a grid of parameters), on VALIDATION alone.

    ``budget f``: the best validation score among the points that use at most ``f * L`` layers there; equal
    scores: fewer layers. ``within 1 point``: the fewest layers among the points that lose at most a point on the
    best full-depth validation score of the label. Other targets: the best validation score among their points.

    Args:
        cells: the cells of one label and one seed.
        target: one of :func:`targets`.

    Returns:
        The choice, or None if no point meets the target.
    """
    choices = [Choice(cell, point) for cell in cells for point in cell.record.operating_points]
    budget = budget_of(target)
    if budget is not None:
        allowed = [c for c in choices if _layers(c) <= budget * c.cell.record.num_layers + _TIE]
    else:
        allowed = [c for c in choices if target in split_targets(c.point)]
    if target == WITHIN_ONE_POINT and allowed:
        reference = max(full_depth_score(cell) for cell in cells)
        good = [c for c in allowed if _validation_score(c) >= reference - 0.01 - _TIE]
        return min(good, key=lambda c: (_layers(c), -_validation_score(c)), default=None)
    return min(allowed, key=lambda c: (-_validation_score(c), _layers(c)), default=None)


def full_depth_score(cell: StoredCell) -> float:
    """Return the validation score of the latest exits that the cell's knob gives."""
    return cell.record.curve_validation[-1].scores[cell.record.metric]


def mean_and_std(values: ArrayLike) -> tuple[float, float | None]:
    """Return the mean, and the sample standard deviation where there is more than one value."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def paired_test(first_correct: ArrayLike, second_correct: ArrayLike) -> PairedTest:
    """Compare two methods by which rows each has right: bool [N] and bool [N], in the same order."""
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"a paired test needs the same rows, got {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    return PairedTest(
        rows=first.size,
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / first.size,
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


def interval_of_mean(values: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean of values [N]."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=256,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _validation_score(choice: Choice) -> float:
    return choice.point.validation.scores[choice.cell.record.metric]


def _layers(choice: Choice) -> float:
    return choice.point.validation.average_layers


def points_of(curve: Sequence[CurvePoint], metric: str) -> tuple[list[float], list[float]]:
    """Return the average layers and the scores along a curve."""
    return [p.average_layers for p in curve], [p.scores[metric] for p in curve]
