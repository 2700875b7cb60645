"""Knobs in the order of their layers: those to try, and the two neighbours that are mixed to meet a budget exactly.

No score is read here, but by :func:`cheapest_within`, which chooses the knob of a saved model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consistentee.versions import TaskKind

Speedups: TypeAlias = tuple[float, float, float]
"""Three budgets, full cost / cost. Tables are sorted by the middle one."""

SPEEDUPS: Mapping[TaskKind, Speedups] = {
    "classification": (1.5, 2.0, 3.0),
    "generation": (1.25, 1.5, 2.0),  # texts degrade at lower speed-ups than labels
}
ROUNDING = 1e-9
"""Costs and scores are means of counts: what differs by less is equal."""
MOST_LOST = 0.01
"""Share of the score that a saved model may lose on validation rows, against its own latest exits."""

_STEPS = 100
_HALVINGS = 24  # after so many, neighbours between 0.9999 and 1 are equal in float32


class Mixtures(NamedTuple):
    """For each budget two knobs, by their places in the curve; a row takes the first one with probability ``weight``.

    Arrays [B]; ``reach`` is "met", "over" (even the cheapest knob costs more than the budget; it stands alone) or
    "under" (even the deepest knob costs less; it stands alone).
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float64]
    reach: NDArray[np.object_]


def neighbours(costs: ArrayLike, budgets: ArrayLike) -> Mixtures:
    """Find the two neighbouring knobs around every budget and the weight at which they cost exactly that.

    ``costs`` [K] are in any order, ``budgets`` [B]. A knob that stands on a budget stands alone; of equal costs the
    first knob counts. Raises ValueError if there is no knob.
    """
    cost, budget = np.asarray(costs, dtype=float), np.atleast_1d(np.asarray(budgets, dtype=float))
    if cost.size == 0:
        raise ValueError("nothing to mix: there are no knobs")
    order = np.argsort(cost, kind="stable")
    order = order[np.diff(cost[order], prepend=-np.inf) > ROUNDING]
    rising = cost[order]
    below = np.searchsorted(rising, budget + ROUNDING, side="right") - 1
    above = np.searchsorted(rising, budget - ROUNDING, side="left")
    reach = np.where(below < 0, "over", np.where(above == rising.size, "under", "met"))
    first, second = below.clip(min=0), above.clip(max=rising.size - 1)
    alone = first == second
    weight = np.where(alone, 1.0, (rising[second] - budget) / np.where(alone, 1.0, rising[second] - rising[first]))
    return Mixtures(order[first], order[second], weight, reach.astype(object))


def around_budgets(layers: ArrayLike, num_layers: float, kind: TaskKind, margin: float = 0.0) -> list[int]:
    """List the knobs that are mixed at the budgets of a kind, those of the middle budget first.

    With a ``margin``, a share of a budget, they lie outside of it: ``layers`` of other rows may differ by as much.
    """
    first, middle, last = SPEEDUPS[kind]
    budgets = num_layers / np.array([middle, first, last])
    below, above = (neighbours(layers, share * budgets) for share in (1 - margin, 1 + margin))
    return list(dict.fromkeys(np.stack([below.first, above.second], axis=1).ravel().tolist()))


def cheapest_within(lost: float, layers: ArrayLike, scores: ArrayLike) -> int:
    """Find the knob with the fewest layers that loses at most ``lost`` against the one with the most layers."""
    cost, score = np.asarray(layers, dtype=float), np.asarray(scores, dtype=float)
    enough = score >= score[cost.argmax()] - lost - ROUNDING
    return int(np.where(enough, cost, np.inf).argmin())


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
