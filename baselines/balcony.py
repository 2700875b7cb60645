"""Balcony (Jamialahmadi et al., EMNLP 2025, arXiv 2503.05005): each exit is a decoder layer of its own.

Training: backbone and LM head are frozen. An exit is a copy of the last decoder layer with its own norm, before the
shared LM head. All exits learn together: mean over exits and tokens of KL(full || exit), here until it stops falling on
validation rows.

Decoding: a budget selects one exit e for all tokens of prompt and text. Layers 1 to e and the exit's layer run as a
decoder of e + 1 layers, without holes in its cache.

Choices: the loss covers response tokens, the paper's all but padding. Rates decay linearly, not as a cosine. A recipe
that trains the backbone does so before, in the shared stage. Exits with attention or an MLP alone, and random
initialisation, are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import consistentee as ee
from consistentee.training import train_branches


@dataclass(frozen=True)
class Balcony(ee.TokenMethod):
    """A shallower decoder for every budget, on a frozen backbone."""

    name: ClassVar[str] = "balcony"
    paper: ClassVar[str] = "Jamialahmadi et al., Balcony, EMNLP 2025, arXiv 2503.05005"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("exit layer", tuple(float(layer) for layer in range(6, 31, 6)))
    asks_exits: ClassVar[bool] = True

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        """Train a decoder layer for every exit."""
        last = ee.BranchSpec(copied_layer=model.num_layers)
        train_branches(model, task, recipe, lambda exit_layer: last)
        return model

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        """Exit at layer ``knob``, the last layer of a shallower decoder."""
        return ee.StaticRule(model.check_exit_layer(knob))

    def model_at(self, model: ee.MultiExitDecoder, knob: float) -> ee.MultiExitDecoder:
        """Return a decoder of the first ``knob`` layers and the exit's own; at full depth, the model itself."""
        layer = model.check_exit_layer(knob)
        return model if layer == model.num_layers else ee.DecoderStack(model, layer)
