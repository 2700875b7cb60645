"""Arithmetic of a curve: speed-ups from raw counts, the Pareto front, the area under it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

RoundSeconds = Mapping[int, Sequence[float]]
"""Batch size -> seconds of every timing round."""


@dataclass(frozen=True)
class Speedups:
    """All that the literature calls "speed-up", each under its own name.

    Attributes:
        average_layers: layers that a row ran, on average.
        saved_fraction: ``1 - average / L`` (PABEE, ConsistentEE); below 0 where a cascade runs more than that.
        layer_ratio: ``L / average`` (ElasticBERT).
        flops_ratio: floating point operations of the full model / of this point; None if not counted.
        time_ratios: batch size -> wall-clock time of the full model / of this point.
    """

    average_layers: float
    saved_fraction: float
    layer_ratio: float
    flops_ratio: float | None = None
    time_ratios: dict[int, float] = field(default_factory=dict)


def speedups(
    layers: float,
    num_layers: int,
    *,
    flops: float | None = None,
    full_flops: float | None = None,
    seconds: RoundSeconds | None = None,
    full_seconds: RoundSeconds | None = None,
) -> Speedups:
    """Derive every ratio from raw numbers: the one place where speed-up is defined.

    Args:
        layers: that a row ran, on average; for tokens that exit by themselves, averaged over them too.
        num_layers: layers of the stock model, L; a cascade may run more.
        flops, full_flops: floating point operations of the same rows here and in the full model.
        seconds, full_seconds: wall-clock seconds of the same rows in the same rounds, here and in full.
    """
    full_seconds = full_seconds or {}
    return Speedups(
        average_layers=layers,
        saved_fraction=1 - layers / num_layers,
        layer_ratio=num_layers / layers,
        flops_ratio=full_flops / flops if flops and full_flops is not None else None,
        time_ratios={
            batch_size: time_ratio(full_seconds[batch_size], rounds)
            for batch_size, rounds in (seconds or {}).items()
            if len(full_seconds.get(batch_size, ())) == len(rounds)
        },
    )


def time_ratio(full_seconds: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the median over rounds of full / here: a slow round slows both, and cancels out."""
    if len(full_seconds) != len(seconds) or not seconds:
        raise ValueError(f"ratios need the same rounds: {len(full_seconds)} in full, {len(seconds)} here")
    return float(np.median(np.asarray(full_seconds) / np.asarray(seconds)))


def pareto_front(costs: ArrayLike, scores: ArrayLike) -> NDArray[np.intp]:
    """Return the indices of the points that no other point beats, by rising cost and rising score.

    A point is beaten if another one costs no more and scores no less, and is better in one of the two.
    Of equal points the first is kept.
    """
    cost, score = np.asarray(costs, dtype=float), np.asarray(scores, dtype=float)
    by_cost = np.lexsort((-score, cost))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], score[by_cost][:-1]]))
    return by_cost[score[by_cost] > best_before]


def area_under_front(
    costs: ArrayLike, scores: ArrayLike, *, lowest: float, highest: float, floor: float = 0.0
) -> float:
    """Return the mean score over all cost budgets in [``lowest``, ``highest``]: one number for a whole curve.

    The area under the Pareto front, divided by the width of the range. Between two points of the front the score is
    interpolated linearly, because a random mix of both knobs reaches it; beyond the most expensive one it stays what
    it is. Below the cheapest one the mix is with ``floor`` at ``lowest``: the score of an answer that looks at nothing.
    ``lowest``, ``highest`` and ``floor`` must be the same for all methods that are compared: 1 and L layers, say, and
    the score of the most frequent class.
    """
    if not lowest < highest:
        raise ValueError(f"the range of costs is empty: [{lowest}, {highest}]")
    cost, score = np.asarray(costs, dtype=float), np.asarray(scores, dtype=float)
    cost, score = np.concatenate([[lowest], cost]), np.concatenate([[floor], score])
    front = pareto_front(cost, score)
    cost, score = cost[front], score[front]
    grid = np.concatenate([[lowest], cost[(cost > lowest) & (cost < highest)], [highest]])
    return float(np.trapezoid(np.interp(grid, cost, score), grid) / (highest - lowest))
