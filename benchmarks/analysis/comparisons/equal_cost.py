"""Methods at equal cost: two knobs of the validation hull, mixed to meet a budget, and scored on test rows.

A row takes the first knob with a fixed probability, whatever it says: a rule that anyone can run. What "the best knob
within a budget" hides, that a method without a knob just below it is scored far below it, cannot happen here. In
generation a row is a prompt, costs are a decoded token's, and the hull is that of the knobs that test prompts were
decoded with: each half of the prompts is scored at the mixture that the other half has chosen, see
:mod:`benchmarks.analysis.comparisons.cross_fitting`, and layers and operations are the means of both; times, for which
few knobs are taken, are those of the mixture that all prompts choose.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.comparisons.cross_fitting import chosen_by_halves, rows_at_halves, scores_of_texts
from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.panels.select import Mixture, Reach, mixture_at
from benchmarks.analysis.rows.frame import knobs_of
from benchmarks.analysis.rows.scored import Scored, scored_of
from benchmarks.analysis.statistics import Floats, score_of_rows
from benchmarks.store.generation_records import GenerationRecord
from consistentee.data.metrics import score

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AtCost:
    """One curve at one budget, averaged over seeds.

    Attributes:
        label: the curve.
        score: of the mixture on test rows.
        points: score minus the full model's of the same seed, as a share (0.01 is a point); None without one.
        layers: average layers of the test rows: on validation rows they are the budget.
        reaches: what of the budget was reached, by seed.
        time_ratios: batch size -> the stock model's time / the mixture's, geometric mean of the seeds with which all
            knobs of the mixture were timed.
        flops_ratio: the same by operations; None if those of some knob were not counted with some seed.
    """

    label: str
    score: float
    points: float | None
    layers: float
    reaches: tuple[Reach, ...]
    time_ratios: dict[int, float] = field(default_factory=dict)
    flops_ratio: float | None = None

    @property
    def kept(self) -> float | None:
        """The score as a share of the full model's; None without one, or where it scores nothing."""
        full = None if self.points is None else self.score - self.points
        return self.score / full if full else None


def at_equal_cost(
    panel: AnyPanel, label: str, speedup: float, measure: str | None = None, *, seeds: Collection[int] | None = None
) -> AtCost:
    """Return what a curve reaches at L / ``speedup`` layers.

    Args:
        panel, label, speedup: the curve and the budget.
        measure: a score of ``scored_of``; by default the task's own.
        seeds: take these alone.
    """
    scored = scored_of(panel, measure)
    of_seeds = "" if seeds is None else f", seeds {sorted(seeds)}"
    return panel.once(
        f"{label} at {speedup:g} times the speed, {scored.column}{of_seeds}",
        lambda: _at_cost(panel, label, mixtures_of(panel, label, speedup, seeds), scored),
    )


def common_seeds(panel: AnyPanel, first: str, second: str) -> frozenset[int]:
    """Return the seeds that both of two curves have: differences are of these; of all if there are none."""
    one, other = set(panel.seeds_of(first)), set(panel.seeds_of(second))
    return frozenset(one & other or one | other)


def at_equal_ratio(panel: AnyPanel, label: str, speedup: float, ratio: str) -> AtCost | None:
    """Return what a curve reaches at the stock model's cost / ``speedup``, where layers are not what is counted.

    Args:
        panel, label, speedup: see :func:`at_equal_cost`.
        ratio: a column of the long table: the stock model's cost / a knob's, on test rows. Those where it is known are
            mixed.

    Returns:
        None where it is known of no knob of some seed.
    """
    found = []
    for seed in panel.seeds_of(label):
        knobs = knobs_of(panel, label, seed)
        known = knobs[knobs[ratio].notna()] if ratio in knobs else knobs[:0]
        if known.empty:
            return None
        found.append(_of_seed(panel, seed, known, 1 / speedup, 1 / known[ratio].to_numpy(float)))
    return _at_cost(panel, label, found, scored_of(panel))


def _at_cost(panel: AnyPanel, label: str, found: "Sequence[OfSeed]", scored: Scored) -> AtCost:
    scores = [_score(scored, one) for one in found]
    full = [scored.full(one.seed) for one in found]
    points = [own - reference for own, reference in zip(scores, full, strict=True) if reference is not None]
    return AtCost(
        label=label,
        score=float(np.mean(scores)),
        points=float(np.mean(points)) if len(points) == len(scores) else None,
        layers=float(np.mean([mixture.of(one.knobs["layers"]) for one in found for mixture in one.scored])),
        reaches=tuple(one.mixture.reach for one in found),
        time_ratios={
            size: ratio for size in panel.batch_sizes if (ratio := _time_ratio(found, f"speedup_b{size}")) is not None
        },
        flops_ratio=_ratio([_share(one.knobs, one.scored, "flops_ratio") for one in found]),
    )


@dataclass(frozen=True)
class OfSeed:
    """A mixture of one curve and seed, and the knobs that it is made of.

    Attributes:
        seed: of the training.
        knobs: lines of ``knobs_of``.
        mixture: chosen on validation rows, or by all texts.
        halves: what every second text, and the others, are scored at; None where the mixture is of all rows.
    """

    seed: int
    knobs: "pd.DataFrame"
    mixture: Mixture
    halves: tuple[Mixture, Mixture] | None = None

    @property
    def scored(self) -> Sequence[Mixture]:
        """What rows are scored at, each mixture by as many of them."""
        return self.halves or (self.mixture,)


def mixtures_of(panel: AnyPanel, label: str, speedup: float, seeds: Collection[int] | None = None) -> list[OfSeed]:
    """Return, for every seed or some, the mixture that costs L / ``speedup`` layers on validation rows."""
    found = panel.once(f"mixtures of {label} at {speedup:g}", lambda: list(_mixtures(panel, label, speedup)))
    return [one for one in found if seeds is None or one.seed in seeds]


def _mixtures(panel: AnyPanel, label: str, speedup: float) -> Iterator[OfSeed]:
    for seed in panel.seeds_of(label):
        knobs = knobs_of(panel, label, seed)
        yield _of_seed(panel, seed, knobs, panel.num_layers / speedup, knobs["validation_layers"].to_numpy(float))


def _of_seed(panel: AnyPanel, seed: int, knobs: "pd.DataFrame", budget: float, costs: Floats) -> OfSeed:
    if not isinstance(panel.cells[0].record, GenerationRecord):
        return OfSeed(seed, knobs, mixture_at(budget, costs, knobs["validation_quality"]))
    of_texts = scores_of_texts(panel, knobs)
    halves = None if of_texts is None else chosen_by_halves(budget, costs, of_texts)
    return OfSeed(seed, knobs, mixture_at(budget, costs, knobs[panel.metric]), halves)


def _score(scored: Scored, one: OfSeed) -> float:
    rows = None if one.halves is None else rows_at_halves(scored, one.knobs, one.halves)
    return mixed_score(scored, one.knobs, one.mixture) if rows is None else score_of_rows(scored.metric, *rows)


def _time_ratio(found: "Sequence[OfSeed]", column: str) -> float | None:
    shares = [_share(one.knobs, [one.mixture], column) for one in found]
    return _ratio([share for share in shares if share is not None])


def _share(knobs: "pd.DataFrame", mixtures: "Sequence[Mixture]", column: str) -> float | None:
    """Mix the costs of knobs of one seed, as shares of the stock model's; None if one was not measured.

    Args:
        knobs: of the seed.
        mixtures: of which as many rows take each.
        column: of the long table, the stock model's cost / a knob's.
    """
    if column not in knobs:
        return None
    share = float(np.mean([mixture.of(1 / knobs[column]) for mixture in mixtures]))
    return None if np.isnan(share) else share


def _ratio(shares: Sequence[float | None]) -> float | None:
    """Return 1 / the geometric mean of shares; None if there is none, or one is not known."""
    known = [share for share in shares if share is not None]
    return float(np.exp(-np.log(known).mean())) if known and len(known) == len(shares) else None


def mixed_score(scored: Scored, knobs: "pd.DataFrame", mixture: Mixture) -> float:
    """Score a mixture: as a weighted sample where both knobs' answers are known, else as the mean of two scores.

    For a mean over rows, such as accuracy, both are the same.
    """
    linear = mixture.of(knobs[scored.column])
    if scored.is_mean or mixture.first == mixture.second:
        return linear
    first, second = (scored.rows_at(knobs.iloc[index]) for index in (mixture.first, mixture.second))
    if first is None or second is None:
        return linear
    (labels, answers), (other_labels, other_answers) = first, second
    shares = np.repeat([mixture.weight, 1 - mixture.weight], [len(labels), len(other_labels)])
    both_labels, both_answers = np.concatenate([labels, other_labels]), np.concatenate([answers, other_answers])
    return score(scored.metric, both_labels, both_answers, shares)
