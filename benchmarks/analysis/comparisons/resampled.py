"""Points at equal cost under a bootstrap that all methods of a task share: the same rows drawn, the same seeds.

Every answer is scored once a resample, by one matrix product for all methods, seeds and budgets of a task; mixtures
are made of the products. So differences between methods are paired, and means over tasks are sums of samples.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.comparisons.equal_cost import OfSeed, answers_at, mixtures_of
from benchmarks.analysis.frame import knobs_of
from benchmarks.analysis.results import FULL, Panel
from benchmarks.analysis.select import Mixture
from benchmarks.measure.intervals import (
    Floats,
    can_resample,
    interval,
    mean_over_drawn_seeds,
    resampled_terms,
    score_of_terms,
)

AtBudget = tuple[str, float]
"""A curve and a speed-up."""


class _Knob(NamedTuple):
    """A knob of a panel: which cell, and its place in the curve of that."""

    cell: int
    place: int


class _Parts(NamedTuple):
    """A mixture of two knobs, and the share of the first."""

    first: _Knob
    second: _Knob
    weight: float


def interval_at_equal_cost(panel: Panel, label: str, speedup: float) -> tuple[float, float] | None:
    """Return the 95% paired bootstrap interval of the points of a curve at a budget, over rows and seeds.

    None unless with every seed the answers of both knobs and of the full model were kept, row by row, and for a score
    of ranks.
    """
    samples = point_samples(panel, [(label, speedup)])
    return interval(samples[label, speedup]) if samples else None


def point_samples(panel: Panel, wanted: Iterable[AtBudget]) -> dict[AtBudget, Floats]:
    """Return bootstrap samples of points against the full model, over rows and seeds: [RESAMPLES] each.

    Without those whose answers, or the full model's of the same seeds, were not kept. Tasks of equal size share the
    drawn rows, which makes no difference: their rows have nothing to do with each other; drawn seeds are their own.
    """
    found = {one: mixtures_of(panel, *one) for one in wanted}
    everything = [of_seed for ones in found.values() for of_seed in ones]
    full = [one for seed in {of_seed.seed for of_seed in everything} if (one := _full_model(panel, seed)) is not None]
    answers = _answers(panel, [*everything, *full])
    if not answers:
        return {}
    labels = next(iter(answers.values()))[0]
    same = {knob: said for knob, (others, said) in answers.items() if np.array_equal(labels, others)}
    if not can_resample(panel.metric, labels):
        return {}
    scores = _Resampled(panel.metric, labels, same)
    references = {one.seed: scores.of(_parts(one)) for one in full if scores.knows(_parts(one))}
    seed_of_draws = crc32(f"{panel.task} {panel.backbone}".encode())
    samples = {}
    for at_budget, ones in found.items():
        if all(scores.knows(_parts(of_seed)) and of_seed.seed in references for of_seed in ones):
            points = [scores.of(_parts(of_seed)) - references[of_seed.seed] for of_seed in ones]
            samples[at_budget] = mean_over_drawn_seeds(np.stack(points, axis=1), seed=seed_of_draws)
    return samples


class _Resampled:
    """The answers of all knobs on every resample of the rows."""

    def __init__(self, metric: str, labels: NDArray, answers: dict[_Knob, NDArray]) -> None:
        self._metric = metric
        self._places = {knob: place for place, knob in enumerate(answers)}
        self._terms = resampled_terms(metric, labels, np.stack(list(answers.values())))

    def knows(self, parts: _Parts) -> bool:
        """Say whether the answers of both knobs of a mixture are known."""
        return {parts.first, parts.second} <= self._places.keys()

    def of(self, parts: _Parts) -> Floats:
        """Return the scores of a mixture: [RESAMPLES]."""
        first, second = (self._terms[:, self._places[knob]] for knob in (parts.first, parts.second))
        return score_of_terms(self._metric, parts.weight * first + (1 - parts.weight) * second)


def _parts(of_seed: OfSeed) -> _Parts:
    first, second = (_knob(of_seed, index) for index in (of_seed.mixture.first, of_seed.mixture.second))
    return _Parts(first, second, of_seed.mixture.weight)


def _knob(of_seed: OfSeed, index: int) -> _Knob:
    return _Knob(*(int(of_seed.knobs[name].iloc[index]) for name in _Knob._fields))


def _full_model(panel: Panel, seed: int) -> OfSeed | None:
    """Return the full model with a seed, as a mixture of it with itself."""
    label = next((label for label, method in panel.methods.items() if method == FULL), None)
    if label is None or not panel.cells_of(label, seed):
        return None
    knobs = knobs_of(panel, label, seed)
    latest = len(knobs) - 1
    return OfSeed(seed, knobs, Mixture(latest, latest, 1.0))


def _answers(panel: Panel, mixtures: Sequence[OfSeed]) -> dict[_Knob, tuple[NDArray, NDArray]]:
    """Read labels and answers of every knob that has any."""
    sides = [(one, index) for one in mixtures for index in {one.mixture.first, one.mixture.second}]
    lines = {_knob(one, index): one.knobs.iloc[index] for one, index in sides}
    found = {knob: answers_at(panel, line) for knob, line in lines.items()}
    return {knob: said for knob, said in found.items() if said is not None}
