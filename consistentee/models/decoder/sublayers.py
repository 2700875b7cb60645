"""SkippedSublayers: a decoder without some of its attentions and MLPs, in its own weights."""

from dataclasses import dataclass

from torch import Tensor

from consistentee.backbones.decoders import DecoderContext, DecoderStepper
from consistentee.errors import UserError


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
        """Raise UserError for layers outside of 1..L, and for a family whose sublayers cannot be skipped."""
        stepper.check_sublayers()
        if outside := [layer for layer in (*self.attention, *self.mlp) if not 1 <= layer <= stepper.num_layers]:
            raise UserError(f"layer {outside[0]} has no sublayers to skip: layers are 1 to {stepper.num_layers}")

    def run(self, stepper: DecoderStepper, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run layers 1 to L without what is skipped: [rows, T, width] -> [rows, T, width].

        Raises UserError for a family whose sublayers cannot be skipped.
        """
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
        """Return what is left of all layers, in layers: a sublayer counts by its share of its layer's weights."""
        left = float(stepper.num_layers)
        for layer in self.attention:
            left -= 1 - stepper.mlp_share(layer)
        for layer in self.mlp:
            left -= stepper.mlp_share(layer)
        return left
