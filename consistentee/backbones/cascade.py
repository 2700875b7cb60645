"""A cascade: a smaller complete model, the companion, runs before the full one, and what it leaves starts again.

To the engine a cascade of k and L layers is one model of k + L layers. At layer k + 1 the rows that are still active
are embedded again, from their tokens, and the L layers of the full backbone follow.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from consistentee.backbones.encoders import Context, EncoderStepper
from consistentee.data.encoding import Batch
from consistentee.errors import UserError

COMPANION = "companion"
"""The name of the companion module in a model."""


class CascadeStepper(EncoderStepper):
    """Run a companion and then a full backbone of the same family and width, one layer at a time."""

    def __init__(self, companion: EncoderStepper, full: EncoderStepper) -> None:
        super().__init__(full.backbone)
        self.companion = companion
        self.full = full
        self.uses_token_types = full.uses_token_types
        self.reserved_positions = full.reserved_positions

    @property
    def num_layers(self) -> int:
        """Number of layers of both backbones, k + L."""
        return self.companion.num_layers + self.full.num_layers

    @property
    def stock_layers(self) -> int:
        return self.full.num_layers

    @property
    def backbones(self) -> dict[str, Any]:
        return {COMPANION: self.companion.backbone, **self.full.backbones}

    @property
    def own_modules(self) -> dict[str, nn.Module]:
        return {COMPANION: self.companion.backbone}

    def _running(self, layer: int) -> tuple[EncoderStepper, int]:
        depth = self.companion.num_layers
        return (self.companion, layer) if layer <= depth else (self.full, layer - depth)

    def layer_module(self, layer: int) -> nn.Module:
        running, own_layer = self._running(layer)
        return running.layer_module(own_layer)

    def embed(self, batch: Batch) -> Tensor:
        return self.companion.embed(batch)

    def read(self, layer: int, hidden: Tensor) -> Tensor:
        running, own_layer = self._running(layer)
        return running.read(own_layer, hidden)

    def context(self, layer: int, hidden: Tensor, batch: Batch) -> Context:
        running, own_layer = self._running(layer)
        return running.context(own_layer, hidden, batch)

    def step(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``layer`` (1-based); at the first one of the full backbone ``hidden`` is not read.

        That layer embeds the tokens of the active rows, and makes ``context`` the full backbone's.
        """
        running, own_layer = self._running(layer)
        if running is self.full and own_layer == 1:
            hidden, own = self.full.begin(context.batch)
            context.attention_mask, context.position_bias = own.attention_mask, own.position_bias
        return running.step(own_layer, hidden, context)


def first_layers(stepper: EncoderStepper, layers: int) -> Any:
    """Return a stock model of its own with copies of a backbone's embeddings and first ``layers`` layers.

    Raises UserError if the backbone does not have more layers than that, or shares weights between them in a way that
    no stock model of fewer layers can.
    """
    if not 1 <= layers < stepper.num_layers:
        raise UserError(
            f"a shorter model must have at least 1 layer and fewer than its model's {stepper.num_layers}, got {layers}"
        )
    with torch.random.fork_rng(devices=[]):  # weights that are drawn only to be replaced
        config, dtype = stepper.config_of_first_layers(layers), stepper.backbone.dtype
        backbone = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    weights = backbone.state_dict()
    copies = {name: weight for name, weight in stepper.backbone.state_dict().items() if name in weights}
    backbone.load_state_dict(weights | copies)
    return backbone
