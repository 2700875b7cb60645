"""Branches: exits that attend. A decoder layer of their own leaves the stack after an exit layer, towards the LM head.

What a branch says of a token depends on all tokens before it, so it has keys and values of its own for each of them:
every token goes through it, or it has holes. So it is no adapter, which reads one hidden state, and rules are not asked
there. A branch is run in a :class:`consistentee.models.decoder.stack.DecoderStack`, or drafts in
:func:`consistentee.generate_speculatively`.
"""

import copy
from dataclasses import dataclass

from torch import nn

from consistentee.arguments import Positive, check_layer, checked
from consistentee.backbones.decoders import DecoderStepper, count_weights


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
        """``exit_layer``: e."""
        super().__init__()
        check_layer(spec.copied_layer, stepper.num_layers)
        stock = stepper.layer_module(spec.copied_layer)
        self.layer = stepper.copied_layer(spec.copied_layer, number=exit_layer + 1, with_mlp=spec.with_mlp)
        self.norm = copy.deepcopy(stepper.final_norm)
        self.size_in_layers = count_weights(self.layer) / count_weights(stock)
        """Weights of the layer over those of a stock one: what a token costs, in layers."""
