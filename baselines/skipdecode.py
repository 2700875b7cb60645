"""SkipDecode (Del Corro et al., 2023, arXiv 2307.02628): one exit layer for each place of a text, for all rows alike.

Rule (section 3): the exit layer depends on the place of a token alone and falls linearly along the text. All rows of a
batch exit together, and a token is never deeper than an earlier one, so no keys and values are missing.

Choices: the knob is the mean layer over the text: above the middle of the range a text begins at layer L, below it ends
at the first exit. The schedule keeps its mean when rounded to exit layers. Places count new tokens, because prompts run
at full depth; the paper also counts the prompt. The paper skips lower layers and runs the top ones; here the top ones
are skipped, or the middle ones if the decoder has closing layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

import consistentee as ee


class ScheduledRule(ee.ExitRule):
    """Exit at a layer given for each step; ``layers`` are for steps 0, 1, ..., the last one for all later steps."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        layers = torch.tensor(self.layers, device=view.device)
        return layers[view.steps.clamp_max(len(self.layers) - 1)] <= view.layer

    def exit_in_advance(self, exit_layers: Sequence[int], step: int, prompt_key: int) -> int:
        wanted = self.layers[min(step, len(self.layers) - 1)]
        return next((layer for layer in exit_layers if layer >= wanted), exit_layers[-1])


@dataclass(frozen=True)
class SkipDecode(ee.TokenMethod):
    """Exit layers fall along the text.

    Attributes:
        horizon: new tokens of the schedule; None for the length that the model was trained with. In shorter texts the
            mean layer is not the knob.
    """

    name: ClassVar[str] = "skipdecode"
    paper: ClassVar[str] = "Del Corro et al., SkipDecode, 2023, arXiv 2307.02628"
    knob: ClassVar[ee.Knob] = ee.Knob("mean layer", tuple(float(layer) for layer in range(6, 31, 3)))

    horizon: PositiveInt | None = None

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return sorted((*map(float, model.exit_layers), *map(fmean, pairwise(model.exit_layers))))

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        return ScheduledRule(falling_schedule(model.exit_layers, knob, self.horizon or model.text_length))


def falling_schedule(exit_layers: Sequence[int], mean_layer: float, tokens: int) -> list[int]:
    """Compute the exit layer of each of ``tokens`` new tokens: a falling line, rounded to exit layers.

    Token 0 comes from the prompt, at full depth, so the line covers the others. Between two exits, as many of the first
    tokens get the deeper one as keep the mean of the line. A larger mean makes no token shallower.
    """
    first, last = exit_layers[0], exit_layers[-1]
    start, end = min(last, 2 * mean_layer - first), max(first, 2 * mean_layer - last)
    decoded = max(tokens - 1, 1)
    places = [0.5 if decoded == 1 else place / (decoded - 1) for place in range(decoded)]
    line = [start + (end - start) * place for place in places]
    schedule = [first] * decoded
    for below, layer in pairwise(exit_layers):
        deeper = round(sum(min(max((depth - below) / (layer - below), 0.0), 1.0) for depth in line))
        schedule[:deeper] = [layer] * deeper
    return [last, *schedule]
