"""Which method ranks where over tasks, and which differences are more than chance.

A block is one (task, backbone); its scores are averaged over seeds first, because seeds of one task are no independent
tasks. The tests are scipy's; the procedure is Demšar's (JMLR 2006), and Holm's for the pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

from benchmarks.analysis.comparisons.curve_summaries import curve_summaries
from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.panels.results import CORE_METHOD, FULL, REFERENCES, BasePanel, Panel

_PanelT = TypeVar("_PanelT", bound=BasePanel[Any, Any, Any])

AREA = "area under the score-layers front"
EQUAL_COST = "points at equal cost, the middle budget"
_LEVEL = 0.05


@dataclass(frozen=True)
class ScoreTable:
    """What every method reaches in every block; higher is better.

    Attributes:
        statistic: what the scores are.
        methods: labels of the curves that have a score in every block.
        blocks: ``task · backbone``.
        scores: [blocks, methods].
        left_out: labels that lack a score in some block.
        blocks_left_out: those that lack most methods, see :func:`compared_panels`.
    """

    statistic: str
    methods: tuple[str, ...]
    blocks: tuple[str, ...]
    scores: NDArray[np.float64]
    left_out: tuple[str, ...]
    blocks_left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """A critical-difference summary.

    Attributes:
        table: the scores.
        mean_ranks: [methods], 1 is best; equal scores share a rank.
        friedman_p: Friedman's test of "all methods are alike".
        critical_difference: Nemenyi's, at 5%: mean ranks that lie closer than this are not told apart.
        groups: sets of neighbours in the order of ranks that Nemenyi's test does not tell apart, largest sets only.
    """

    table: ScoreTable
    mean_ranks: tuple[float, ...]
    friedman_p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PairOverTasks:
    """One method against another over all blocks.

    Attributes:
        second: label of the other.
        wins, losses: blocks where the first scores higher, lower.
        difference: median over blocks of first - second.
        p_value: Wilcoxon's signed-rank test over blocks, two-sided; with n blocks the exact one cannot be below
            ``2 ** (1 - n)``.
        holm_p_value: the same, corrected by Holm's procedure for all pairs of the first method.
    """

    second: str
    wins: int
    losses: int
    difference: float
    p_value: float
    holm_p_value: float


def block_name(panel: BasePanel[Any, Any, Any]) -> str:
    """Name a panel in tables over all tasks."""
    return f"{panel.task} · {panel.backbone}"


def compared_panels(panels: Sequence[_PanelT]) -> list[_PanelT]:
    """Return the panels that have at least half of all curves: the tasks over which methods are compared; else all.

    Most methods need classes. With a regression among the tasks, no other method would be defined on all of them.
    """
    curves = {label for panel in panels for label in panel.methods}
    return [panel for panel in panels if 2 * len(panel.methods) >= len(curves)] or list(panels)


def score_table(panels: Sequence[Panel], statistic: str) -> ScoreTable:
    """Collect one score a method and block, references (but static and random) left out.

    Args:
        panels: all blocks.
        statistic: :data:`AREA`, the mean test score over all layer budgets, see ``area_under_front``; or
            :data:`EQUAL_COST`, points at the middle of the budgets, see ``at_equal_cost``, or the test score where the
            full model was not run.
    """
    compared = compared_panels(panels)
    found = [_scores(panel, statistic) for panel in compared]
    everywhere = [label for label in found[0] if all(label in scores for scores in found)] if found else []
    seen = dict.fromkeys(label for scores in found for label in scores)
    blocks = tuple(map(block_name, compared))
    return ScoreTable(
        statistic=statistic,
        methods=tuple(everywhere),
        blocks=blocks,
        scores=np.array([[scores[label] for label in everywhere] for scores in found]),
        left_out=tuple(label for label in seen if label not in everywhere),
        blocks_left_out=tuple(name for name in map(block_name, panels) if name not in blocks),
    )


def _scores(panel: Panel, statistic: str) -> dict[str, float]:
    compared = [m for m, method in panel.methods.items() if method not in (FULL, *REFERENCES)]
    compared += [m for m, method in panel.methods.items() if method in ("static", "random")]
    if statistic == AREA:
        areas = {summary.label: summary.layers_area for summary in curve_summaries(panel)}
        return {label: areas[label] for label in compared}
    middle = panel.speedups[1]
    found = {label: at_equal_cost(panel, label, middle) for label in compared}
    return {label: one.score if one.points is None else one.points for label, one in found.items()}


def rank(table: ScoreTable) -> Ranking | None:
    """Rank methods over blocks; None for fewer than 3 methods or 2 blocks, where nothing can be tested."""
    blocks, methods = table.scores.shape if table.scores.ndim == 2 else (0, 0)
    if methods < 3 or blocks < 2:
        return None
    ranks = mean_ranks(table.scores)
    difference = critical_difference(methods, blocks)
    alike = bool((table.scores == table.scores[:, :1]).all())  # scipy divides by the variance of the ranks
    return Ranking(
        table=table,
        mean_ranks=tuple(ranks.tolist()),
        friedman_p=1.0 if alike else float(friedmanchisquare(*table.scores.T).pvalue),
        critical_difference=difference,
        groups=indistinct_groups(table.methods, ranks, difference),
    )


def rankings(panels: Sequence[Panel]) -> list[Ranking]:
    """Rank methods by both statistics; nothing with fewer than 2 tasks or 3 methods that all of them have."""
    found = [rank(score_table(panels, statistic)) for statistic in (AREA, EQUAL_COST)]
    return [ranking for ranking in found if ranking is not None]


def mean_ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the mean over blocks of each method's rank: scores [blocks, methods] -> [methods], 1 is best."""
    return np.asarray(rankdata(-np.asarray(scores, dtype=float), axis=1).mean(axis=0))


def critical_difference(methods: int, blocks: int) -> float:
    """Return Nemenyi's critical difference of mean ranks at 5%: ``q * sqrt(k (k + 1) / (6 n))``.

    q is the studentised range of k means with infinite degrees of freedom, divided by the square root of 2.
    """
    quantile = float(studentized_range.ppf(1 - _LEVEL, methods, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * blocks)))


def indistinct_groups(methods: Sequence[str], ranks: ArrayLike, difference: float) -> tuple[tuple[str, ...], ...]:
    """Return the largest runs of methods, in the order of their mean ranks, that span less than ``difference``."""
    values = np.asarray(ranks, dtype=float)
    order = np.argsort(values, kind="stable")
    by_rank = values[order]
    ends = [int(np.searchsorted(by_rank, low + difference, side="left")) for low in by_rank]
    starts = [0, *(i + 1 for i, (before, end) in enumerate(pairwise(ends)) if end > before)]
    return tuple(tuple(methods[i] for i in order[start : ends[start]]) for start in starts if ends[start] > start + 1)


def pairs_over_tasks(table: ScoreTable, first: str = CORE_METHOD) -> list[PairOverTasks]:
    """Test one method against every other one over all blocks; nothing without it, or with a single block."""
    if first not in table.methods or len(table.blocks) < 2:
        return []
    own = table.scores[:, table.methods.index(first)]
    others = [label for label in table.methods if label != first]
    deltas = [own - table.scores[:, table.methods.index(label)] for label in others]
    p_values = [signed_rank_test(delta) for delta in deltas]
    return [
        PairOverTasks(
            second=label,
            wins=int((delta > 0).sum()),
            losses=int((delta < 0).sum()),
            difference=float(np.median(delta)),
            p_value=p_value,
            holm_p_value=corrected,
        )
        for label, delta, p_value, corrected in zip(others, deltas, p_values, holm(p_values), strict=True)
    ]


def signed_rank_test(deltas: NDArray[np.float64]) -> float:
    """Return Wilcoxon's p: exact where all differences are distinct and none is 0, else by the normal approximation."""
    sizes = np.abs(deltas)
    if not sizes.any():
        return 1.0
    exact = sizes.all() and np.unique(sizes).size == sizes.size
    return float(wilcoxon(deltas, method="exact" if exact else "asymptotic").pvalue)


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
