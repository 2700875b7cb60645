"""THE choice of operating points: single knobs for a target, on validation data alone, and mixtures of equal cost.

A quality is what higher is better: a score, or the agreement with the full model. A cost is what lower is better:
average layers, FLOPs, milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.specs.targets import Agreement, Budget, Target

ROUNDING = 1e-9
"""Costs and qualities are means of counts: what differs by less is equal."""


def choose(
    target: Target, layers: ArrayLike, quality: ArrayLike, *, num_layers: int, reference: float | None = None
) -> int | None:
    """Return the index of the knob that meets a target best, of ``layers`` [K] and ``quality`` [K] on validation data.

    Within a budget: the best quality, of equal ones the fewest layers. For the other targets: the fewest layers of
    those that are good enough, of equal ones the best quality. Of equal knobs the first.

    Args:
        target: what is wanted.
        layers: average layers of each knob.
        quality: of each knob; for an agreement, the share of rows answered as in the full model.
        num_layers: of the stock model, L: budgets are shares of it.
        reference: the score that :class:`PointsLost` is measured against; other targets need none.

    Returns:
        The index, or None if no knob meets the target.
    """
    cost, good = np.asarray(layers, dtype=float), np.asarray(quality, dtype=float)
    cheapest_first = np.lexsort((-good, cost))
    if isinstance(target, Budget):
        return _first(np.lexsort((cost, -good)), cost <= target.layers_at_most * num_layers + ROUNDING)
    if isinstance(target, Agreement):
        return _first(cheapest_first, good >= target.agreement_at_least - ROUNDING)
    if reference is None:
        raise ValueError(f"'{target}' needs the score that points are lost against")
    return _first(cheapest_first, good >= reference - target.lost_at_most - ROUNDING)


def _first(order: NDArray[np.intp], allowed: NDArray[np.bool_]) -> int | None:
    return next((int(index) for index in order if allowed[index]), None)


def choose_all(
    targets: Sequence[Target],
    layers: ArrayLike,
    quality: ArrayLike,
    *,
    num_layers: int,
    reference: float | None = None,
) -> dict[int, list[Target]]:
    """Choose for several targets: index of the knob -> what it was chosen for, by rising index; see :func:`choose`."""
    chosen: dict[int, list[Target]] = {}
    for target in targets:
        index = choose(target, layers, quality, num_layers=num_layers, reference=reference)
        if index is not None:
            chosen.setdefault(index, []).append(target)
    return dict(sorted(chosen.items()))


class Reach(Enum):
    """Whether points can be mixed to a budget."""

    MET = "met"
    OVER = "over"
    """Even the cheapest point costs more: that point is taken."""
    UNDER = "under"
    """Even the best point costs less: that point is taken."""


@dataclass(frozen=True)
class Mixture:
    """Two knobs, the first of which a row takes with probability ``weight``: a rule that anyone can run.

    Attributes:
        first, second: indices of the two hull neighbours of the budget, the cheaper one first; equal where one knob
            meets it alone, or where it is beyond the ends of the hull.
        weight: share of the first.
        reach: whether the budget is met.
    """

    first: int
    second: int
    weight: float
    reach: Reach = Reach.MET

    def of(self, values: ArrayLike) -> float:
        """Mix values [K] of the points: of costs and of scores that are means over rows, exactly."""
        known = np.asarray(values, dtype=float)
        return float(self.weight * known[self.first] + (1 - self.weight) * known[self.second])


def concave_hull(costs: ArrayLike, scores: ArrayLike) -> NDArray[np.intp]:
    """Return the points on the upper concave hull, from the cheapest to the best one: what mixing two knobs reaches.

    Points right of the best one are left out: they cost more and score no better. Of points that lie on the line
    between two others the ends are kept; of equal points the first.

    Args:
        costs, scores: [K].

    Returns:
        Indices by rising cost; scores rise too, by less and less per unit of cost.
    """
    cost, score = np.asarray(costs, dtype=float), np.asarray(scores, dtype=float)
    hull: list[int] = []
    for index in map(int, np.lexsort((-score, cost))):
        if hull and score[index] <= score[hull[-1]]:
            continue  # dominated
        while len(hull) > 1 and _is_below(cost, score, hull[-2], hull[-1], index):
            hull.pop()
        hull.append(index)
    return np.array(hull, dtype=np.intp)


def _is_below(cost: NDArray[np.float64], score: NDArray[np.float64], left: int, middle: int, right: int) -> bool:
    """Say whether the middle point is not above the line from the left to the right one; costs rise strictly."""
    to_middle = (score[middle] - score[left]) * (cost[right] - cost[left])
    to_right = (score[right] - score[left]) * (cost[middle] - cost[left])
    return bool(to_middle <= to_right)


def mixture_at(budget: float, costs: ArrayLike, scores: ArrayLike) -> Mixture:
    """Return the two points on the concave hull whose mixture costs exactly ``budget``; beyond the hull, its end.

    Args:
        budget: cost that is allowed.
        costs, scores: [K], of every knob of every cell of a method's grid: on validation data, or on texts that are not
            those to be scored.

    Raises:
        ValueError: there are no points.
    """
    cost = np.asarray(costs, dtype=float)
    hull = concave_hull(cost, scores)
    if hull.size == 0:
        raise ValueError("nothing to mix: there are no points")
    place = int(np.searchsorted(cost[hull], budget))
    if place == hull.size:
        end = int(hull[-1])
        return Mixture(end, end, 1.0, Reach.UNDER)
    above = int(hull[place])
    alone = cost[above] <= budget + ROUNDING
    if alone or place == 0:
        return Mixture(above, above, 1.0, Reach.MET if alone else Reach.OVER)
    below = int(hull[place - 1])
    return Mixture(below, above, float((cost[above] - budget) / (cost[above] - cost[below])))
