"""Does the clock follow the layers? Speed-up by the clock against the speed-up that average layers allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from benchmarks.analysis.panels.results import Panel
from benchmarks.analysis.rows.base import time_ratios


@dataclass(frozen=True)
class ClockSummary:
    """How the measured speed-up of some operating points compares with L / average layers, at one batch size.

    Attributes:
        points: number of operating points.
        kept: median of measured / allowed: 1 where the clock saves what the layers promise.
        low, high: 5th and 95th percentile of that.
        correlation: Spearman's, of measured and allowed; None where it is not defined.
    """

    points: int
    kept: float
    low: float
    high: float
    correlation: float | None


def measured_speedups(panel: Panel, batch_size: int) -> list[tuple[str, float, float]]:
    """Return (label, allowed, measured) of every timed operating point at one batch size.

    Allowed is L / the average layers of the timed rows; measured is the time of the stock model / of this point, the
    median over rounds of the ratio in the same round.
    """
    found = []
    for timing in panel.timings:
        for contender in timing.contenders:
            stock = panel.stock(timing.seed, beside=contender)
            if contender.knob is None or stock is None or contender.label not in panel.methods:
                continue
            ratios = time_ratios(contender, stock)
            if batch_size in ratios:
                found.append((contender.label, panel.num_layers / contender.average_layers, ratios[batch_size]))
    return found


def clock_summary(speedups: Sequence[tuple[str, float, float]]) -> ClockSummary | None:
    """Summarise (label, allowed, measured) of some operating points; None of none."""
    if not speedups:
        return None
    allowed, measured = (np.array([point[i] for point in speedups]) for i in (1, 2))
    low, kept, high = np.percentile(measured / allowed, [5, 50, 95])
    varied = len(speedups) > 2 and np.ptp(allowed) > 0 and np.ptp(measured) > 0
    correlation = float(spearmanr(allowed, measured).statistic) if varied else None
    return ClockSummary(len(speedups), float(kept), float(low), float(high), correlation)
