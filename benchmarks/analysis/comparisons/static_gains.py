"""Is a method better than exits that look at nothing? Its score, less that of a static exit that may cost as much.

A mixture that meets a budget on validation rows may cost more or less on test rows: the static exit gets as much, and
spends less where no deeper one is better on validation rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost, common_seeds
from benchmarks.analysis.comparisons.resampled import samples_of_seeds
from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.results import FULL, MAJORITY, AnyPanel, labels_of_role, role_of
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.statistics import interval

STATIC = "static"

PRINTED = 0.0005
"""Half of a tenth of a point: an interpolated correlation is off by less, and tables show it as 0.0."""


@dataclass(frozen=True)
class StaticGain:
    """One curve at one budget against a static exit that may cost as much.

    Attributes:
        gain: its score minus the static exit's, mean of the seeds that both have, as a share (0.01 is a point).
        interval: 95% paired bootstrap interval of the points of both, over rows and seeds; None where some answers were
            not kept, for a score of ranks, and where even the cheapest static exit costs more.
        reaches: what of the budget the curve reached, by seed.
    """

    gain: float
    interval: tuple[float, float] | None
    reaches: tuple[Reach, ...]

    @property
    def text(self) -> str:
        """The gain in points, and a star where it is beyond noise: ``+2.6*``."""
        return f"{100 * self.gain:+.1f}{'*' * abs(self.beyond_noise)}"

    @property
    def beyond_noise(self) -> int:
        """1 or -1 where the interval lies above or below 0 by what a table can show, else 0.

        What costs more than the budget does not count as better.
        """
        if self.interval is None:
            return 0
        low, high = self.interval
        return int(low > PRINTED and Reach.OVER not in self.reaches) - int(high < -PRINTED)


def static_gains(panel: AnyPanel, speedup: float) -> dict[str, StaticGain]:
    """Return the gain of every curve at a budget; nothing of the full model, static exits and the majority class."""
    return panel.once(f"gains over static exits at {speedup:g}", lambda: _static_gains(panel, speedup))


def _static_gains(panel: AnyPanel, speedup: float) -> dict[str, StaticGain]:
    static = next(iter(labels_of_role(panel.methods, STATIC)), None)
    if static is None:
        return {}
    labels = [label for label, method in panel.methods.items() if role_of(method) not in (FULL, STATIC, MAJORITY)]
    seeds = {label: common_seeds(panel, label, static) for label in labels}
    found = {label: at_equal_cost(panel, label, speedup, seeds=seeds[label]) for label in labels}
    as_cheap = {label: panel.num_layers / one.layers for label, one in found.items()}
    samples = {}
    for of_seeds in set(seeds.values()):
        alike = [label for label in labels if seeds[label] == of_seeds]
        wanted = {(label, speedup) for label in alike} | {(static, as_cheap[label]) for label in alike}
        samples[of_seeds] = samples_of_seeds(panel, wanted, of_seeds)
    gains = {}
    for label, one in found.items():
        beside = at_equal_cost(panel, static, as_cheap[label], seeds=seeds[label])
        own, other = (samples[seeds[label]].get(at) for at in ((label, speedup), (static, as_cheap[label])))
        comparable = Reach.OVER not in beside.reaches  # else even the cheapest static exit costs more
        known = interval(own - other) if comparable and own is not None and other is not None else None
        gains[label] = StaticGain(_gain(one, beside), known, one.reaches)
    return gains


def _gain(found: AtCost, static: AtCost) -> float:
    """Return the difference of points, each against the full models of its own seeds, or of scores without them."""
    if found.points is None or static.points is None:
        return found.score - static.score
    return found.points - static.points


def mean_gain(gains: Sequence[StaticGain | None]) -> float | None:
    """Return the mean over tasks of one curve's gains; None unless it has one on each."""
    return mean_of_all([None if gain is None else gain.gain for gain in gains])
