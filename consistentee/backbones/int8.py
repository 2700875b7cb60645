"""Run the linear layers of a backbone in 8-bit integers on a CPU: weights and inputs, with float32 in between.

The range of every layer's input is fixed once, on some rows: up to rounding the result of a row does not depend on its
batch, as it would with ``torch.ao.quantization.quantize_dynamic``. Weights use 7 bits, so that no sum overflows on
processors without VNNI: a saved model gives the same integers everywhere. Where oneDNN's kernel is missing they are
computed in float32, as exactly and no faster.

The kernel is the one that torch.compile uses for int8 on x86; it takes plain tensors. Those of ``torch.ao`` take
quantised tensors, which torch 2.13 announces to remove. torchao's layers are fast only behind torch.compile.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from consistentee.errors import UserError

Quantize = Literal["none", "int8"]
"""Precision of the linear layers of a backbone."""

_HIGHEST_WEIGHT, _HIGHEST_INPUT = 63, 255
_WHOLE = 2.0**23
"""From here on float32 has whole numbers only: adding it rounds, and the lowest byte is the number."""


@cache
def has_int8_kernel() -> bool:
    """Return whether oneDNN multiplies int8 matrices here, and as exactly as float32 does."""
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 64))
    states = torch.randn(3, 64, generator=generator)
    with torch.inference_mode():
        with observing([layer]):
            layer(states)
        try:
            return torch.allclose(layer.multiplied(states), layer.simulated(states), rtol=1e-4, atol=1e-4)
        except (AttributeError, RuntimeError):
            return False


class Int8Linear(nn.Module):
    """A linear layer of integers: ``scale * (q(input) @ weight) + bias``, with a scale for each output."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    lowest: Tensor
    highest: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny) / _HIGHEST_WEIGHT
        self.register_buffer("weight", (weight / scale.unsqueeze(1)).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.register_buffer("lowest", torch.zeros(()))
        self.register_buffer("highest", torch.zeros(()))
        self.observing = False
        self._packed: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        if self.observing:
            self.lowest.clamp_(max=states.amin())
            self.highest.clamp_(min=states.amax())
            return functional.linear(states, self.weight * self.scale.unsqueeze(1), self.bias)
        fast = states.device.type == "cpu" and states.dtype == torch.float32 and has_int8_kernel()
        return self.multiplied(states) if fast else self.simulated(states)

    def multiplied(self, states: Tensor) -> Tensor:
        """Compute the layer by oneDNN: [..., in] -> [..., out]."""
        if self._packed is None:
            self._step, self._zero = self._range()
            self._offset = torch.tensor(_WHOLE + self._zero)
            self._zeros = torch.zeros(self.out_features, dtype=torch.int32)
            self._packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        whole = _rounded(states, self._step, self._offset).view(torch.int32).to(torch.uint8)  # float32 would be slow
        scales = self._step, self._zero, self._packed, self.scale, self._zeros
        return torch.ops.onednn.qlinear_pointwise(whole, *scales, self.bias, 1.0, 0, torch.float32, "none", [], "")

    def simulated(self, states: Tensor) -> Tensor:
        """Compute the same integers in floating point."""
        step, zero = self._range()
        offset = torch.tensor(_WHOLE + zero, device=states.device)
        whole = (_rounded(states.float(), step, offset) - offset).to(states.dtype)
        product = functional.linear(whole, self.weight.to(states.dtype)) * (self.scale * step)
        return product if self.bias is None else product + self.bias

    def _range(self) -> tuple[float, int]:
        """Return the size of a step of the input, and the integer that stands for 0."""
        step = max(float(self.highest - self.lowest), 1e-6) / _HIGHEST_INPUT
        return step, min(_HIGHEST_INPUT, round(-float(self.lowest) / step))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*arguments)


def _rounded(states: Tensor, step: float, offset: Tensor) -> Tensor:
    """Return the integers of float32 inputs, ``_WHOLE`` added to each."""
    return torch.add(offset, states, alpha=1 / step).clamp_(_WHOLE, _WHOLE + _HIGHEST_INPUT)


def quantize_layers(backbone: nn.Module) -> list[Int8Linear]:
    """Replace every linear layer of a stock model; their inputs are to be observed next, or loaded."""
    layers = {name: Int8Linear(each) for name, each in backbone.named_modules() if isinstance(each, nn.Linear)}
    for name, layer in layers.items():
        backbone.set_submodule(name, layer)
    return list(layers.values())


@contextmanager
def observing(layers: Iterable[Int8Linear]) -> Iterator[None]:
    """Widen the ranges of the layers' inputs by all that they read in the block."""
    layers = list(layers)
    for layer in layers:
        layer.observing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.observing, layer._packed = False, None


_TOOLS = ("torch.ao.", "torchao.", "optimum.quanto.", "bitsandbytes.")


def check_not_quantized(model: nn.Module) -> None:
    """Raise UserError if a tool has quantised the layers of a model that has exits.

    Its exits and its knob were chosen for other hidden states, and no error would tell.
    """
    for module in model.modules():
        weight = module.weight.data if isinstance(module, nn.Linear) else None
        if any(type(part).__module__.startswith(_TOOLS) for part in (module, weight)):
            raise UserError(
                f"the model was quantised from outside ({type(module).__qualname__}) after its exits were trained, "
                "which ruins their answers; `consistentee accelerate` trains exits on an int8 model"
            )
