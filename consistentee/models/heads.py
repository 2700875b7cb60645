"""Learned heads: small networks that a method adds to the model (policy, uncertainty, confidence, ...)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consistentee.arguments import NotNegative, Number, Positive, check_layer, checked


@checked
@dataclass(frozen=True)
class HeadSpec:
    """A small network that reads the pooled vector of a layer.

    Attributes:
        hidden: width of a hidden layer with GELU, or None for a linear head.
        shared: one module for all layers, instead of one a layer.
        extra_inputs: further inputs that the rule concatenates to the pooled vector.
        reads_pooled: whether the pooled vector is an input at all.
    """

    outputs: Positive = 1
    hidden: Positive | None = None
    shared: bool = False
    extra_inputs: NotNegative = 0
    reads_pooled: bool = True
    initial_bias: Number = 0.0


class ExitHeads(nn.Module):
    """The modules behind one HeadSpec: one a layer, or one shared."""

    def __init__(self, spec: HeadSpec, width: int, num_layers: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_layers = num_layers
        count = 1 if spec.shared else num_layers
        inputs = (width if spec.reads_pooled else 0) + spec.extra_inputs
        self.modules_by_layer = nn.ModuleList(_network(spec, inputs) for _ in range(count))

    def forward(self, layer: int, pooled: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the output at layer ``layer`` (1-based): [rows], or [rows, outputs] if there are several."""
        check_layer(layer, self.num_layers)
        given = 0 if extra is None else extra.shape[-1]
        if given != self.spec.extra_inputs:
            raise ValueError(f"this head takes {self.spec.extra_inputs} extra inputs a row, got {given}")
        parts = [pooled] if self.spec.reads_pooled else []
        parts += [] if extra is None else [extra.to(pooled.dtype)]
        features = torch.cat(parts, dim=-1)
        output = self.modules_by_layer[0 if self.spec.shared else layer - 1](features)
        return output.squeeze(-1) if self.spec.outputs == 1 else output

    def at_layers(self, layers: Sequence[int], pooled: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the outputs at some layers (1-based): [rows, layers], or [rows, layers, outputs].

        ``pooled`` is [rows, layers, width], and ``extra`` [rows, layers, extra inputs].
        """
        extras = [None] * len(layers) if extra is None else extra.unbind(dim=1)
        inputs = zip(layers, pooled.unbind(dim=1), extras, strict=True)
        return torch.stack([self(layer, vectors, more) for layer, vectors, more in inputs], dim=1)


def _network(spec: HeadSpec, inputs: int) -> nn.Module:
    last = nn.Linear(spec.hidden or inputs, spec.outputs)
    nn.init.constant_(last.bias, spec.initial_bias)
    if spec.hidden is None:
        return last
    return nn.Sequential(nn.Linear(inputs, spec.hidden), nn.GELU(), last)
