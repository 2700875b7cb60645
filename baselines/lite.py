"""LITE (Varshney et al., Findings of NAACL 2024, arXiv 2310.18581): instruction tuning with losses at middle layers.

Training: the whole model learns the cross-entropy of every exit, with equal weights, through its own final norm and LM
head (``trains: all``, ``adapter: shared``). On a frozen backbone exits are trained in the shared stage. Exits of
LLaMA-2-7B are at 8, 12, ..., 28 of 32 layers; here the suite sets them.

Rule: exit if the largest probability reaches a threshold that falls with depth. The paper's thresholds (those of
LLaMA-2-7B here are from memory: check them before you cite them) are interpolated by depth. Choice: one knob shifts the
log-odds of all of them; 0 gives the paper's. Keys and values of skipped layers are propagated as in CALM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

import consistentee as ee
from consistentee.signals import top_probability


class DepthThresholdRule(ee.ExitRule):
    """Exit if the largest probability reaches the threshold of the layer; a threshold of 1 never exits.

    ``thresholds``: of each exit layer before the last.
    """

    def __init__(self, thresholds: Mapping[int, float]) -> None:
        self.thresholds = thresholds

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        threshold = self.thresholds[view.layer]
        if threshold >= 1:
            return torch.zeros(view.rows, dtype=torch.bool, device=view.device)
        return top_probability(view) >= threshold

    def asked_at(self, layer: int) -> bool:
        return self.thresholds[layer] < 1


@dataclass(frozen=True)
class LITE(ee.VocabularyMethod):
    """Exit if the largest probability reaches a threshold that falls with depth.

    Class attributes:
        thresholds: the paper's, as (share of the depth, threshold).
    """

    name: ClassVar[str] = "lite"
    paper: ClassVar[str] = "Varshney et al., LITE, Findings of NAACL 2024, arXiv 2310.18581"
    # The ends make every threshold 0 or 1.
    knob: ClassVar[ee.Knob] = ee.Knob("shift", (-20.0, *(step / 4 for step in range(-32, 33)), 40.0))
    thresholds: ClassVar[Sequence[tuple[float, float]]] = (
        *((0.25, 0.95), (0.375, 0.95), (0.5, 0.9)),
        *((0.625, 0.9), (0.75, 0.8), (0.875, 0.7)),
    )

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        return super().fit(model, task, replace(recipe, exit_weights="equal", layer_dropout=0.0, taught_share=0.0))

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return self.pruned(DepthThresholdRule(shifted_thresholds(self.thresholds, model.exit_layers, knob)))


def shifted_thresholds(
    by_depth: Sequence[tuple[float, float]], exit_layers: Sequence[int], shift: float
) -> dict[int, float]:
    """Compute the threshold of each exit layer before the last, with ``shift`` added to its log-odds.

    ``by_depth``: thresholds by share of the depth, increasing; interpolated linearly between them and constant beyond
    the first and the last.
    """
    shares = [layer / exit_layers[-1] for layer in exit_layers[:-1]]
    papers = np.interp(shares, [depth for depth, _ in by_depth], [value for _, value in by_depth])
    return dict(zip(exit_layers[:-1], (torch.from_numpy(papers).logit() + shift).sigmoid().tolist(), strict=True))
