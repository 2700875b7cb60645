"""Choose knobs on validation data: those to try, the best for a target, the two that are mixed to meet a cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.specs.targets import Agreement, Budget, Target

ROUNDING = 1e-9
"""Costs and scores are means of counts: what differs by less is equal."""

_STEPS = 100
_HALVINGS = 24  # after so many, neighbours between 0.9999 and 1 are equal in float32


def refine_knobs(knobs: Sequence[float], layers_of: Callable[[Sequence[float]], ArrayLike]) -> list[float]:
    """Halve the distances of neighbouring knobs until their layers are a hundredth of the whole range apart, or less.

    That gives a hundred different points or more, unless many rows have the same signal. Of neighbours with equal
    layers the middle one is kept, away from the thresholds at which rows change their exit; both ends are kept, too.

    Args:
        knobs: from earliest to latest exits.
        layers_of: the mean layers of validation rows at some knobs, [K].
    """
    values, layers = np.array(knobs, dtype=float), np.asarray(layers_of(knobs), dtype=float)
    for _ in range(_HALVINGS):
        (wide,) = np.nonzero(np.abs(np.diff(layers)) > np.ptp(layers) / _STEPS + ROUNDING)
        if wide.size == 0:
            break
        middle = (values[wide] + values[wide + 1]) / 2
        values, layers = np.insert(values, wide + 1, middle), np.insert(layers, wide + 1, layers_of(middle.tolist()))
    groups = np.split(values, np.nonzero(np.abs(np.diff(layers)) > ROUNDING)[0] + 1)
    middles = [same[np.abs(same - (same[0] + same[-1]) / 2).argmin()] for same in groups[1:-1]]
    return [float(knob) for knob in (values[0], *middles, values[-1])]


def choose(
    target: Target, layers: ArrayLike, quality: ArrayLike, *, num_layers: int, reference: float | None = None
) -> int | None:
    """Return the index of the knob that meets a target best on validation data; None if no knob meets it.

    Within a budget: the best quality, of equal ones the fewest layers. For the other targets: the fewest layers of
    those that are good enough, of equal ones the best quality. Of equal knobs the first.

    Args:
        layers, quality: of each knob, [K]; for an agreement, the share of rows answered as in the full model.
        num_layers: of the stock model, L: budgets are shares of it.
        reference: the score that :class:`PointsLost` is measured against; other targets need none.
    """
    cost, good = np.asarray(layers, dtype=float), np.asarray(quality, dtype=float)
    order = np.lexsort((-good, cost))
    if isinstance(target, Budget):
        order, allowed = np.lexsort((cost, -good)), cost <= target.layers_at_most * num_layers + ROUNDING
    elif isinstance(target, Agreement):
        allowed = good >= target.agreement_at_least - ROUNDING
    elif reference is None:
        raise ValueError(f"'{target}' needs the score that points are lost against")
    else:
        allowed = good >= reference - target.lost_at_most - ROUNDING
    return next((int(index) for index in order if allowed[index]), None)


def choose_all(
    targets: Sequence[Target], layers: ArrayLike, quality: ArrayLike, *, num_layers: int, reference: float | None = None
) -> dict[int, list[Target]]:
    """Choose for several targets: index of the knob -> what it was chosen for, by rising index; see :func:`choose`."""
    chosen: dict[int, list[Target]] = {}
    for target in targets:
        index = choose(target, layers, quality, num_layers=num_layers, reference=reference)
        if index is not None:
            chosen.setdefault(index, []).append(target)
    return dict(sorted(chosen.items()))


class Reach(StrEnum):
    """Whether points can be mixed to a budget."""

    MET = "met"
    OVER = "over"
    """Even the cheapest point costs more; that point is taken."""
    UNDER = "under"
    """Even the best point costs less; that point is taken."""


@dataclass(frozen=True)
class Mixture:
    """Two knobs, the first of which a row takes with probability ``weight``.

    They are the indices of the hull vertices around the budget, the cheaper one first; equal where one knob meets it
    alone, or where it is beyond the ends of the hull.
    """

    first: int
    second: int
    weight: float
    reach: Reach = Reach.MET

    def of(self, values: ArrayLike) -> float:
        """Mix values [K] of the points: costs, and scores that are means over rows."""
        known = np.asarray(values, dtype=float)
        return float(self.weight * known[self.first] + (1 - self.weight) * known[self.second])


def concave_hull(costs: ArrayLike, scores: ArrayLike) -> NDArray[np.intp]:
    """Find the points on the upper concave hull, from the cheapest to the best one: what mixing two knobs reaches.

    Points that cost more than the best one are left out. Collinear points and ties are dropped: of points on the line
    between two others the ends are kept, of equal points the first. Differences below :data:`ROUNDING` are none.

    Returns:
        Indices of ``costs`` and ``scores`` [K] by rising cost; scores rise too, by less and less per unit of cost.
    """
    cost, score_ = (np.round(np.asarray(values, dtype=float), 9) for values in (costs, scores))
    hull: list[int] = []
    for index in map(int, np.lexsort((-score_, cost))):
        if hull and score_[index] <= score_[hull[-1]] + ROUNDING:
            continue  # dominated
        while len(hull) > 1:
            left, middle = hull[-2], hull[-1]
            slope = (score_[index] - score_[left]) / (cost[index] - cost[left])
            if score_[middle] > score_[left] + slope * (cost[middle] - cost[left]) + ROUNDING:
                break
            hull.pop()
        hull.append(index)
    return np.array(hull, dtype=np.intp)


def mixture_at(budget: float, costs: ArrayLike, scores: ArrayLike) -> Mixture:
    """Find the two points on the concave hull whose mixture costs exactly ``budget``; beyond the hull, its end.

    ``costs`` and ``scores`` [K] are of every knob of every cell of a method's grid: on validation data, or on texts
    that are not those to be scored. Raises ValueError if there are none.
    """
    hull = concave_hull(costs, scores)
    if hull.size == 0:
        raise ValueError("nothing to mix: there are no points")
    cost = np.asarray(costs, dtype=float)
    return mixture_that_pays(budget, cost, cost, hull, np.arange(cost.size))


def mixture_that_pays(
    budget: float,
    costs: NDArray[np.float64],
    paid: NDArray[np.float64],
    hull: NDArray[np.intp],
    index: NDArray[np.intp],
) -> Mixture:
    """Mix the two vertices around a budget so that test rows pay exactly that; ``index`` are the lines of the points.

    The vertices are those around the budget in ``costs``, or the nearest ones around it in what is ``paid``: both
    count layers and read no label.
    """
    last = hull.size - 1
    place = min(max(int(np.searchsorted(costs[hull], budget)), 1), max(last, 1))
    while place > 1 and paid[hull[place - 1]] > budget + ROUNDING:
        place -= 1
    while place < last and paid[hull[place]] < budget:
        place += 1
    below, above = int(hull[place - 1]), int(hull[min(place, last)])
    if paid[below] > budget + ROUNDING:
        return Mixture(int(index[below]), int(index[below]), 1.0, Reach.OVER)
    if paid[above] <= budget + ROUNDING:
        reach = Reach.MET if paid[above] >= budget - ROUNDING else Reach.UNDER
        return Mixture(int(index[above]), int(index[above]), 1.0, reach)
    weight = float((paid[above] - budget) / (paid[above] - paid[below]))
    return Mixture(int(index[below]), int(index[above]), weight)
