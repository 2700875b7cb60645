"""Means over tasks or seeds of what may not be known of each: then the mean is not known either."""

from collections.abc import Sequence

import numpy as np


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean; None unless there are values, and all are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def geometric_mean_of_all(ratios: Sequence[float | None]) -> float | None:
    """Return the same of ratios: their geometric mean."""
    known = [ratio for ratio in ratios if ratio is not None]
    return float(np.exp(np.mean(np.log(known)))) if known and len(known) == len(ratios) else None
