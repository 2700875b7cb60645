"""The fewest layers at which a method is shown to lose at most a point: chosen by a lower bound, on validation rows.

Chosen by the mean of the difference, a lucky knob is taken for a saving. So of all mixtures along the validation hull
the cheapest one counts whose difference to the full model has a 95% interval (of a paired bootstrap over validation
rows) that lies above -1 point. Where none has, nothing was shown, and the full model itself runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.comparisons.equal_cost import mixed_score
from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.panels.select import ROUNDING, Mixture, concave_hull, mixture_at
from benchmarks.analysis.rows.frame import knobs_of
from benchmarks.analysis.rows.scored import scored_of
from benchmarks.analysis.statistics import Floats, can_resample, resampled_terms, score_of_terms
from benchmarks.specs.targets import WITHIN_ONE_POINT
from consistentee.errors import UserError

_STEP = 0.1
"""Layers between the mixtures that are tried."""
_LOWER = 2.5


@dataclass(frozen=True)
class Saving:
    """What one curve may save on one task, mean of the seeds.

    Attributes:
        layers: average layers of the test rows.
        points: test score minus the full model's, as a share (0.01 is a point).
    """

    layers: float
    points: float


def savings(panel: AnyPanel) -> dict[str, Saving]:
    """Return what every curve may save whose answers of validation rows were kept, and the full model's.

    Nothing for a score of ranks, nor of generation, whose validation prompts are not decoded at all knobs.
    """
    return panel.once("savings", lambda: _savings(panel))


def mean_saving(panels: Sequence[AnyPanel], label: str) -> Saving | None:
    """Return the mean over tasks; None unless it is known of each."""
    found = [savings(panel).get(label) for panel in panels]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    layers, points = np.mean([(one.layers, one.points) for one in known], axis=0)
    return Saving(float(layers), float(points))


def _savings(panel: AnyPanel) -> dict[str, Saving]:
    found = {label: _saving(panel, label) for label in panel.labels}  # panel by panel: drawn rows are drawn once
    return {label: one for label, one in found.items() if one is not None}


def _saving(panel: AnyPanel, label: str) -> Saving | None:
    by_seed, scored = [], scored_of(panel)
    for seed in panel.seeds_of(label):
        knobs = knobs_of(panel, label, seed)
        reference, bounds = scored.full(seed), _Bounds.of(panel, label, seed)
        if reference is None or bounds is None:
            return None
        mixture = bounds.cheapest()
        if mixture is None:
            by_seed.append((float(panel.num_layers), 0.0))
        else:
            points = mixed_score(scored, knobs, mixture) - reference
            by_seed.append((mixture.of(knobs["layers"]), points))
    layers, points = np.mean(by_seed, axis=0)
    return Saving(float(layers), float(points))


@dataclass(frozen=True)
class _Bounds:
    """One curve and seed on validation rows.

    Attributes:
        hull: the knobs on the hull.
        costs, scores: of these.
        metric: the task's.
        terms: of these on every resample of the validation rows, [RESAMPLES, hull, terms].
        full: scores of the full model on the same resamples, [RESAMPLES].
    """

    hull: NDArray[np.intp]
    costs: NDArray[np.float64]
    scores: NDArray[np.float64]
    metric: str
    terms: Floats
    full: Floats

    @classmethod
    def of(cls, panel: AnyPanel, label: str, seed: int) -> "_Bounds | None":
        knobs = knobs_of(panel, label, seed)
        full_label = panel.full_label
        if full_label is None or "hull" not in knobs or not panel.cells_of(full_label, seed):
            return None
        full = knobs_of(panel, full_label, seed)
        costs, scores = (knobs[name].to_numpy(float) for name in ("validation_layers", "validation_quality"))
        hull = concave_hull(costs, scores)
        lines = [knobs.iloc[index] for index in hull] + [full.iloc[len(full) - 1]]
        said = [_validation_answers(panel, int(line["cell"]), line["hull"]) for line in lines]
        known = [one for one in said if one is not None]
        labels = known[0][0] if known else np.empty(0)
        if len(known) < len(said) or not can_resample(panel.metric, labels):
            return None
        if not all(np.array_equal(labels, others) for others, _ in known):
            return None
        terms = resampled_terms(panel.metric, labels, np.stack([answers for _, answers in known]))
        full_scores = score_of_terms(panel.metric, terms[:, -1])
        return cls(hull, costs[hull], scores[hull], panel.metric, terms[:, :-1], full_scores)

    def cheapest(self) -> Mixture | None:
        """Return the cheapest mixture whose lower bound is within a point of the full model; None if none is."""
        low, high = self.costs[[0, -1]]
        tried = [mixture_at(cost, self.costs, self.scores) for cost in (*np.arange(low, high, _STEP), high)]
        first, second = [one.first for one in tried], [one.second for one in tried]
        weights = np.array([mixture.weight for mixture in tried])[:, None]
        mixed = weights * self.terms[:, first] + (1 - weights) * self.terms[:, second]
        differences = score_of_terms(self.metric, mixed) - self.full[:, None]
        lower = np.percentile(differences, _LOWER, axis=0)
        good = np.flatnonzero(lower >= -WITHIN_ONE_POINT.lost_at_most - ROUNDING)
        if not good.size:
            return None
        found = tried[good[0]]
        return replace(found, first=int(self.hull[found.first]), second=int(self.hull[found.second]))


def _validation_answers(panel: AnyPanel, cell: int, hull: float) -> tuple[NDArray, NDArray] | None:
    if np.isnan(hull):
        return None
    try:
        rows = panel.once(f"validation rows of cell {cell}", panel.cells[cell].rows.validation)
    except UserError:  # they are gone: the curve still stands
        return None
    column = f"hull_prediction_{hull:.0f}"
    if rows is None or column not in rows:
        return None
    in_order = rows.sort_values("row")
    return in_order["label"].to_numpy(), in_order[column].to_numpy()
