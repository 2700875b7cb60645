"""Branches: exits that attend. A decoder layer of their own lies between an exit layer and the LM head.

A branch has keys and values of its own for all tokens, so every token goes through it, and rules are not asked there.
It is run in a :class:`consistentee.DecoderStack`, or drafts in :func:`consistentee.generate_speculatively`.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from consistentee.arguments import Positive, check_layer, checked
from consistentee.backbones.decoders import DecoderContext, DecoderStepper, count_weights
from consistentee.errors import UserError


@checked
@dataclass(frozen=True)
class BranchSpec:
    """A branch before it is trained.

    Attributes:
        copied_layer: the stock layer whose weights it starts from, 1-based.
        with_mlp: a whole layer; else norm and attention alone, as in Kangaroo.
    """

    copied_layer: Positive
    with_mlp: bool = True


class Branch(nn.Module):
    """A layer of the stock family, as layer e + 1 of a stack whose first e layers are the stock ones, and a norm."""

    def __init__(self, spec: BranchSpec, exit_layer: int, stepper: DecoderStepper) -> None:
        super().__init__()
        check_layer(spec.copied_layer, stepper.num_layers)
        stock = stepper.layer_module(spec.copied_layer)
        self.layer = stepper.copied_layer(spec.copied_layer, number=exit_layer + 1, with_mlp=spec.with_mlp)
        self.norm = copy.deepcopy(stepper.final_norm)
        self.size_in_layers = count_weights(self.layer) / count_weights(stock)
        """Weights of the layer over those of a stock one: what a token costs, in layers."""


@dataclass(frozen=True)
class SkippedSublayers:
    """Sublayers that a pass leaves out: hidden states go past them unchanged.

    Attributes:
        attention: layers whose norm and attention are skipped, 1-based. They keep no keys and values of such a pass.
        mlp: layers whose norm and MLP are skipped.
    """

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)

    def check(self, stepper: DecoderStepper) -> None:
        """Raise UserError for layers outside of 1..L."""
        if outside := [layer for layer in (*self.attention, *self.mlp) if not 1 <= layer <= stepper.num_layers]:
            raise UserError(f"layer {outside[0]} has no sublayers to skip: layers are 1 to {stepper.num_layers}")

    def run(self, stepper: DecoderStepper, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run layers 1 to L without these: [rows, T, width] -> [rows, T, width]; see :meth:`check`."""
        for layer in range(1, stepper.num_layers + 1):
            if layer not in self.attention and layer not in self.mlp:
                hidden = stepper.step(layer, hidden, context)
                continue
            if layer not in self.attention:
                hidden = stepper.attend(layer, hidden, context)
            if layer not in self.mlp:
                hidden = stepper.feed_forward(layer, hidden)
        return hidden

    def layers_left(self, stepper: DecoderStepper) -> float:
        """Return the number of layers left: a sublayer counts by its share of its layer's weights."""
        left = float(stepper.num_layers)
        for layer in self.attention:
            left -= 1 - stepper.mlp_share(layer)
        for layer in self.mlp:
            left -= stepper.mlp_share(layer)
        return left
