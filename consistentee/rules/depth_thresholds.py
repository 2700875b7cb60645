"""Thresholds on the largest probability that fall with depth (LITE, SoFT)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.signals import top_probability
from consistentee.rules.view import LayerView

FIRST_EXIT, FULL_DEPTH = -20.0, 40.0
"""Shifts that make every threshold 0 (the first exit) or 1 (full depth)."""

SHIFTS = (FIRST_EXIT, *(step / 4 for step in range(-32, 33)), FULL_DEPTH)
"""Values of the knob, from earliest to latest exits; 0 gives the paper's thresholds."""


class DepthThresholdRule(ExitRule):
    """Exit if the largest probability reaches the threshold of the layer; a threshold of 1 never exits.

    ``thresholds``: of each exit layer before the last.
    """

    def __init__(self, thresholds: Mapping[int, float]) -> None:
        self.thresholds = thresholds

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        threshold = self.thresholds[view.layer]
        if threshold >= 1:
            return torch.zeros(view.rows, dtype=torch.bool, device=view.device)
        return top_probability(view) >= threshold


def shifted_thresholds(
    by_depth: Sequence[tuple[float, float]], exit_layers: Sequence[int], shift: float
) -> dict[int, float]:
    """Return the threshold of each exit layer before the last.

    Args:
        by_depth: (share of the depth, threshold in 0..1) of the paper, increasing; interpolated linearly between them
            and constant beyond the first and the last.
        exit_layers: the last one is L.
        shift: added to the log-odds of every threshold.
    """
    shares = [layer / exit_layers[-1] for layer in exit_layers[:-1]]
    papers = np.interp(shares, [depth for depth, _ in by_depth], [value for _, value in by_depth])
    return dict(zip(exit_layers[:-1], expit(logit(papers) + shift).tolist(), strict=True))
