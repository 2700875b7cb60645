"""The headline: points lost against the full model at every budget, mean over tasks, and how sure that is.

Intervals are of a paired bootstrap over rows and seeds of these tasks. They say whether the same order would come out
with other rows and seeds; Wilcoxon's test over tasks says whether it would on other tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost, common_seeds
from benchmarks.analysis.comparisons.ranking import compared_panels, holm, mean_ranks, signed_rank_test
from benchmarks.analysis.comparisons.resampled import AtBudget, samples_of_all, samples_of_seeds
from benchmarks.analysis.comparisons.static_gains import static_gains
from benchmarks.analysis.panels.means import geometric_mean_of_all, mean_of_all
from benchmarks.analysis.panels.results import CORE_METHOD, FULL, MAJORITY, ORACLE, REFERENCES, AnyPanel, role_of
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.statistics import Floats, interval
from benchmarks.specs.targets import Speedups

PEERS = ("deebert", "pabee", "berxit", "calm-tokens-softmax", "calm-tokens-state", "free")
"""The methods that variants of the core method are tested against by name, where they were run."""


@dataclass(frozen=True)
class Entry:
    """One curve at one budget.

    Attributes:
        label: the curve.
        speedup: the budget is L / speedup layers.
        found: what it reaches on every task, in their order.
        points: mean over tasks of its score minus the full model's, as a share (0.01 is a point).
        interval: 95% paired bootstrap interval of that; None where the answers of some rows are not known.
        rank: of the points, mean over tasks, 1 is best, among the curves that all tasks have.
        above_static, below_static: tasks where its difference to a static exit that may cost as much is beyond noise;
            None for static exits themselves, and where no interval is known.
    """

    label: str
    speedup: float
    found: tuple[AtCost, ...]
    points: float
    interval: tuple[float, float] | None
    rank: float
    above_static: int | None
    below_static: int | None

    @property
    def layers(self) -> float:
        """Mean over tasks of the layers of the test rows."""
        return float(np.mean([one.layers for one in self.found]))

    @property
    def kept(self) -> float | None:
        """Mean over tasks of the share of the full model's score; None where on some task it is not known."""
        return mean_of_all([one.kept for one in self.found])

    @property
    def seeds(self) -> int:
        """The seeds of the task that has fewest."""
        return min(len(one.reaches) for one in self.found)

    @property
    def speedups(self) -> dict[str, float]:
        """Geometric means over tasks of the measured speed-ups that all have: ``flops_ratio``, ``speedup_b1``, ...."""
        sizes = sorted({size for one in self.found for size in one.time_ratios})
        by_name = {"flops_ratio": [one.flops_ratio for one in self.found]}
        by_name |= {f"speedup_b{size}": [one.time_ratios.get(size) for one in self.found] for size in sizes}
        means = {name: geometric_mean_of_all(ratios) for name, ratios in by_name.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    @property
    def is_over(self) -> bool:
        """Whether on some task even the cheapest knob costs more than the budget."""
        return any(Reach.OVER in one.reaches for one in self.found)


@dataclass(frozen=True)
class Contrast:
    """Two curves at one budget, over all tasks, of the seeds that both have on a task.

    Attributes:
        first, second: labels.
        difference: mean over tasks of first minus second, as a share.
        interval: 95% paired bootstrap interval of that; None where the answers of some rows are not known.
        p_value: two-sided, of the same bootstrap; with 1000 resamples at least 0.002.
        holm_p_value: the same, corrected for all contrasts at this budget.
        wins, losses: tasks where the first has more points, fewer.
        tasks_p_value: Wilcoxon's signed-rank test over tasks, two-sided; None of a single task.
        holm_tasks_p_value: the same, corrected.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    holm_p_value: float | None
    wins: int
    losses: int
    tasks_p_value: float | None
    holm_tasks_p_value: float | None


@dataclass(frozen=True)
class Headline:
    """All curves at all budgets.

    Attributes:
        panels: the tasks that means are over.
        speedups: the budgets.
        methods: label -> method of the curves that all of them have, best mean at the middle budget first; last come
            those that spend more than that on some task.
        missing: labels of those that some task lacks.
        entries: by curve and budget.
        samples: bootstrap samples of the points of every curve at every budget, where known: [RESAMPLES] each.
    """

    panels: tuple[AnyPanel, ...]
    speedups: Speedups
    methods: dict[str, str]
    missing: tuple[str, ...]
    entries: dict[AtBudget, Entry]
    samples: dict[AtBudget, Floats] = field(repr=False)

    @property
    def middle(self) -> float:
        """The budget that tables are sorted by."""
        return self.speedups[1]

    @property
    def lacks_rows(self) -> bool:
        """Whether some interval is missing."""
        return any(entry.interval is None for entry in self.entries.values())


def headline(panels: Sequence[AnyPanel]) -> Headline | None:
    """Compare all curves over the tasks that (nearly) all are defined for, see ``compared_panels``.

    Of panels that have the full model; None if there is none.
    """
    known = [panel for panel in panels if panel.full_label is not None]
    if not known:
        return None
    names = ", ".join(f"{panel.task} {panel.backbone}" for panel in known)
    return known[0].once(f"headline of {names}", lambda: _headline(compared_panels(known)))


def _headline(panels: Sequence[AnyPanel]) -> Headline:
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    speedups, middle = panels[0].speedups, panels[0].speedups[1]
    labels = [label for label, method in methods.items() if role_of(method) not in (FULL, ORACLE, MAJORITY)]
    everywhere = [label for label in labels if all(label in panel.methods for panel in panels)]
    found = {(x, s): tuple(at_equal_cost(panel, x, s) for panel in panels) for x in everywhere for s in speedups}
    by_panel = list(map(samples_of_all, panels))
    known = [one for one in found if all(one in own for own in by_panel)]
    samples = {one: np.mean([own[one] for own in by_panel], axis=0) for one in known}
    entries = {}
    for speedup in speedups:
        points = np.array([[one.points for one in found[label, speedup]] for label in everywhere]).T
        for label, rank in zip(everywhere, mean_ranks(points) if everywhere else (), strict=True):
            above, below = _beyond_static(panels, label, speedup)
            entries[label, speedup] = Entry(
                label=label,
                speedup=speedup,
                found=found[label, speedup],
                points=float(np.mean([one.points for one in found[label, speedup]])),
                interval=interval(samples[label, speedup]) if (label, speedup) in samples else None,
                rank=float(rank),
                above_static=above,
                below_static=below,
            )
    best_first = sorted(everywhere, key=lambda label: (entries[label, middle].is_over, -entries[label, middle].points))
    missing = tuple(label for label in labels if label not in everywhere)
    return Headline(tuple(panels), speedups, {label: methods[label] for label in best_first}, missing, entries, samples)


def _beyond_static(panels: Sequence[AnyPanel], label: str, speedup: float) -> tuple[int | None, int | None]:
    """Count the tasks where a curve is above and below static exits by more than noise."""
    gains = [static_gains(panel, speedup).get(label) for panel in panels]
    known = [gain.beyond_noise for gain in gains if gain is not None and gain.interval is not None]
    return (known.count(1), known.count(-1)) if len(known) == len(gains) else (None, None)


def contrasts(of: Headline, pairs: Sequence[tuple[str, str]], speedup: float) -> list[Contrast]:
    """Test pairs of curves at one budget, corrected for their number by Holm's procedure."""
    deltas = [_by_task(of, first, second, speedup) for first, second in pairs]
    samples = [_difference(of, first, second, speedup) for first, second in pairs]
    p_values = _with_holm([None if sample is None else _bootstrap_p(sample) for sample in samples])
    over_tasks = _with_holm([signed_rank_test(delta) if len(delta) > 1 else None for delta in deltas])
    return [
        Contrast(
            first=first,
            second=second,
            difference=float(delta.mean()),
            interval=None if sample is None else interval(sample),
            p_value=p,
            holm_p_value=corrected,
            wins=int((delta > 0).sum()),
            losses=int((delta < 0).sum()),
            tasks_p_value=tasks_p,
            holm_tasks_p_value=tasks_corrected,
        )
        for (first, second), delta, sample, (p, corrected), (tasks_p, tasks_corrected) in zip(
            pairs, deltas, samples, p_values, over_tasks, strict=True
        )
    ]


def core_pairs(of: Headline, speedup: float) -> list[tuple[str, str]]:
    """Return every variant of the core method with every named peer, and the best variant with the best peer.

    The best are those of this budget's own test scores, which flatters both; what costs more than the budget is last.
    """
    variants = [label for label, method in of.methods.items() if method.startswith(CORE_METHOD)]
    others = [label for label in of.methods if label not in variants and role_of(of.methods[label]) not in REFERENCES]
    named = [label for label in others if of.methods[label] in PEERS]
    pairs = [(variant, peer) for variant in variants for peer in named]
    if variants and others:
        best = _best(of, variants, speedup), _best(of, others, speedup)
        pairs = [*(pair for pair in pairs if pair != best), best]
    return pairs


def _best(of: Headline, labels: Sequence[str], speedup: float) -> str:
    return max(labels, key=lambda label: (not of.entries[label, speedup].is_over, of.entries[label, speedup].points))


def _by_task(of: Headline, first: str, second: str, speedup: float) -> Floats:
    """Return the points of the first minus those of the second, on each task: [tasks]."""

    def points(panel: AnyPanel, label: str) -> float:
        known = at_equal_cost(panel, label, speedup, seeds=common_seeds(panel, first, second)).points
        return np.nan if known is None else known

    return np.array([points(panel, first) - points(panel, second) for panel in of.panels])


def _difference(of: Headline, first: str, second: str, speedup: float) -> Floats | None:
    """Return bootstrap samples of the mean over tasks of first minus second; None where some task has none."""
    wanted, differences = [(first, speedup), (second, speedup)], []
    for panel in of.panels:
        found = samples_of_seeds(panel, wanted, common_seeds(panel, first, second))
        if len(found) < len(wanted):
            return None
        differences.append(found[wanted[0]] - found[wanted[1]])
    samples: Floats = np.mean(differences, axis=0)
    return samples


def _bootstrap_p(samples: Floats) -> float:
    """Return twice the share of samples on the rarer side of 0, itself counted as one of them."""
    rarer = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (samples.size + 1))


def _with_holm(p_values: Sequence[float | None]) -> list[tuple[float | None, float | None]]:
    """Correct the values that are known."""
    known = iter(holm([value for value in p_values if value is not None]))
    return [(value, None if value is None else next(known)) for value in p_values]
