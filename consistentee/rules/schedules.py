"""Rules whose exit or threshold is given in advance, by the place of a token in its text or by depth."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, State, first_exit
from consistentee.rules.view import LayerView
from consistentee.signals import top_probability

_USUAL_LENGTH = 64


class ScheduledRule(ExitRule):
    """Exit at a layer given for each step; ``layers`` are for steps 0, 1, ..., the last one for all later steps."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        layers = torch.tensor(self.layers, device=view.device)
        return layers[view.steps.clamp_max(len(self.layers) - 1)] <= view.layer

    def exit_in_advance(self, exit_layers: Sequence[int], step: int, prompt_key: int) -> int:
        return first_exit(exit_layers, self.layers[min(step, len(self.layers) - 1)])


def check_exit_layer(model: MultiExitDecoder, layer: float) -> int:
    """Return ``layer`` as an int. Raises UserError if the model has no exit there."""
    if layer not in model.exit_layers:
        known = ", ".join(map(str, model.exit_layers))
        raise UserError(f"this model has no exit at layer {layer:g}; its exit layers are {known}")
    return int(layer)


def mean_layers(model: MultiExitDecoder) -> tuple[float, ...]:
    """Return the mean layers to sweep: every exit layer, and half-way between two."""
    between = [(a + b) / 2 for a, b in pairwise(model.exit_layers)]
    return tuple(sorted(map(float, (*model.exit_layers, *between))))


def text_length(model: MultiExitDecoder, horizon: int | None) -> int:
    """Return the number of tokens of a schedule: ``horizon``, else the length the model was trained with, else 64."""
    return horizon or model.description.max_new_tokens or _USUAL_LENGTH


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

    def asked_at(self, layer: int) -> bool:
        return self.thresholds[layer] < 1


def shifted_thresholds(
    by_depth: Sequence[tuple[float, float]], exit_layers: Sequence[int], shift: float
) -> dict[int, float]:
    """Return the threshold of each exit layer before the last, with ``shift`` added to its log-odds.

    ``by_depth``: (share of the depth, threshold in 0..1) of the paper, increasing; interpolated linearly between them
    and constant beyond the first and the last.
    """
    shares = [layer / exit_layers[-1] for layer in exit_layers[:-1]]
    papers = np.interp(shares, [depth for depth, _ in by_depth], [value for _, value in by_depth])
    return dict(zip(exit_layers[:-1], expit(logit(papers) + shift).tolist(), strict=True))
