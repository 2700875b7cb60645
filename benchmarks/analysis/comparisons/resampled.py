"""Points at equal cost under a bootstrap that all methods of a task share: the same rows drawn, the same seeds.

Every answer is scored once a resample, by one matrix product for all methods, seeds and budgets of a task; mixtures
are made of the products. So differences between methods are paired, and means over tasks are sums of samples.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.comparisons.cross_fitting import rows_at_halves
from benchmarks.analysis.comparisons.equal_cost import OfSeed, mixtures_of
from benchmarks.analysis.panels.results import FULL, MAJORITY, AnyPanel, role_of
from benchmarks.analysis.rows.scored import RowAnswers, Scored, scored_of
from benchmarks.analysis.statistics import (
    Floats,
    can_resample,
    interval,
    mean_over_drawn_seeds,
    resampled_terms,
    score_of_terms,
)

if TYPE_CHECKING:
    import pandas as pd

AtBudget = tuple[str, float]
"""A curve and a speed-up."""


class _Knob(NamedTuple):
    """A knob of a panel: which cell, and its place in the curve of that."""

    cell: int
    place: int


class _Full(NamedTuple):
    """The full model with a seed."""

    seed: int


class _Texts(NamedTuple):
    """Texts of which each half is decoded as the other has chosen, of one curve, budget and seed."""

    label: str
    speedup: float
    seed: int


class _Parts(NamedTuple):
    """A mixture of two answers, and the share of the first."""

    first: _Knob | _Texts
    second: _Knob | _Texts
    weight: float


_Key: TypeAlias = _Knob | _Texts | _Full


def interval_at_equal_cost(
    panel: AnyPanel, label: str, speedup: float, measure: str | None = None
) -> tuple[float, float] | None:
    """Return the 95% paired bootstrap interval of the points of a curve at a budget, over rows and seeds.

    None unless with every seed the answers of both knobs and of the full model were kept, row by row, and for a score
    of ranks. ``measure``: as ``at_equal_cost`` has it.
    """
    samples = point_samples(panel, [(label, speedup)], measure)
    return interval(samples[label, speedup]) if samples else None


def samples_of_all(panel: AnyPanel) -> dict[AtBudget, Floats]:
    """Return :func:`point_samples` of all curves at all budgets, the full model and the majority class left out."""
    curves = [label for label, method in panel.methods.items() if role_of(method) not in (FULL, MAJORITY)]
    return panel.once("samples of all curves", lambda: point_samples(panel, product(curves, panel.speedups)))


def samples_of_seeds(panel: AnyPanel, wanted: Collection[AtBudget], seeds: Collection[int]) -> dict[AtBudget, Floats]:
    """Return :func:`point_samples` of some seeds alone: of what :func:`samples_of_all` has, where these are all."""
    known = samples_of_all(panel)
    found = {one: known[one] for one in wanted if one in known and set(panel.seeds_of(one[0])) <= set(seeds)}
    others = [one for one in wanted if one not in found]
    return found | (point_samples(panel, others, seeds=seeds) if others else {})


def point_samples(
    panel: AnyPanel,
    wanted: Iterable[AtBudget],
    measure: str | None = None,
    *,
    seeds: Collection[int] | None = None,
) -> dict[AtBudget, Floats]:
    """Return bootstrap samples of points against the full model, over rows and (some) seeds: [RESAMPLES] each.

    Without those whose answers, or the full model's of the same seeds, were not kept. Tasks of equal size share the
    drawn rows, which makes no difference: their rows have nothing to do with each other; drawn seeds are their own.
    """
    scored = scored_of(panel, measure)
    found = {one: mixtures_of(panel, *one, seeds) for one in wanted}
    answers = _answers(scored, found)
    trained = sorted({of_seed.seed for ones in found.values() for of_seed in ones})
    for seed in trained:
        if (rows := scored.rows_of_full(seed)) is not None:
            answers[_Full(seed)] = rows
    if not answers:
        return {}
    labels = next(iter(answers.values()))[0]
    same = {key: said for key, (others, said) in answers.items() if np.array_equal(labels, others)}
    if not can_resample(scored.metric, labels):
        return {}
    scores = _Resampled(scored.metric, labels, same)
    references = {seed: scores.at(_Full(seed)) for seed in trained if _Full(seed) in same}
    seed_of_draws = crc32(f"{panel.task} {panel.backbone}".encode())
    samples = {}
    for at_budget, ones in found.items():
        parts = {of_seed.seed: _parts(at_budget, of_seed) for of_seed in ones}
        if all(scores.knows(one) and seed in references for seed, one in parts.items()):
            points = [scores.of(one) - references[seed] for seed, one in parts.items()]
            samples[at_budget] = mean_over_drawn_seeds(np.stack(points, axis=1), seed=seed_of_draws)
    return samples


class _Resampled:
    """The answers of all knobs, and of the full model, on every resample of the rows."""

    def __init__(self, metric: str, labels: NDArray, answers: dict[_Key, NDArray]) -> None:
        self._metric = metric
        self._places = {key: place for place, key in enumerate(answers)}
        self._terms = resampled_terms(metric, labels, np.stack(list(answers.values())))

    def knows(self, parts: _Parts) -> bool:
        """Say whether both answers of a mixture are known."""
        return {parts.first, parts.second} <= self._places.keys()

    def at(self, key: _Full) -> Floats:
        """Return the scores of the full model: [RESAMPLES]."""
        return score_of_terms(self._metric, self._terms[:, self._places[key]])

    def of(self, parts: _Parts) -> Floats:
        """Return the scores of a mixture: [RESAMPLES]."""
        first, second = (self._terms[:, self._places[knob]] for knob in (parts.first, parts.second))
        return score_of_terms(self._metric, parts.weight * first + (1 - parts.weight) * second)


def _parts(at_budget: AtBudget, of_seed: OfSeed) -> _Parts:
    if of_seed.halves is not None:
        texts = _Texts(*at_budget, of_seed.seed)
        return _Parts(texts, texts, 1.0)
    first, second = (_knob(of_seed, index) for index in (of_seed.mixture.first, of_seed.mixture.second))
    return _Parts(first, second, of_seed.mixture.weight)


def _knob(of_seed: OfSeed, index: int) -> _Knob:
    return _Knob(*(int(of_seed.knobs[name].iloc[index]) for name in _Knob._fields))


def _answers(scored: Scored, mixtures: Mapping[AtBudget, Sequence[OfSeed]]) -> dict[_Key, RowAnswers]:
    """Read what rows say at every knob, and every half of the texts at its own, where that was kept."""
    found: dict[_Key, RowAnswers | None] = {}
    lines: dict[_Knob, pd.Series] = {}
    for at_budget, ones in mixtures.items():
        for one in ones:
            if one.halves is not None:
                found[_Texts(*at_budget, one.seed)] = rows_at_halves(scored, one.knobs, one.halves)
            else:
                sides = (one.mixture.first, one.mixture.second)
                lines |= {_knob(one, index): one.knobs.iloc[index] for index in sides}
    found |= {knob: scored.rows_at(line) for knob, line in lines.items()}
    return {key: said for key, said in found.items() if said is not None}
