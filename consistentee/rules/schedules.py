"""Exits that depend only on the place of a token in its text."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView

_USUAL_LENGTH = 64


class ScheduledRule(ExitRule):
    """Exit at a layer given for each step; ``layers`` are for steps 0, 1, ..., the last one for all later steps."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        layers = torch.tensor(self.layers, device=view.device)
        return layers[view.steps.clamp_max(len(self.layers) - 1)] <= view.layer


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
