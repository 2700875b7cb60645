"""Attention in training on a CPU: step by step, since torch's fused one is slow there, and without dropout.

The fused kernel of a decoder takes a fifth of a step on rows of a hundred tokens, most of it backwards; one by one, the
products take a tenth. Asked for dropout, ``scaled_dot_product_attention`` falls back to a slow path that guards against
rows without any key, copies and scales both sides: an encoder's own steps draw the same dropout and give the same
numbers, up to rounding, in half the time.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistentee.models.encoder.multi_exit_model import MultiExitModel


@contextmanager
def stepwise_attention(model: MultiExitModel) -> Iterator[None]:
    """For the time being, compute attention step by step where a model's backbones would fuse it, on a CPU."""
    on_cpu = model.device.type == "cpu"
    fused = [b for b in model.backbones if on_cpu and b.config._attn_implementation == "sdpa"]
    for backbone in fused:
        backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        for backbone in fused:
            backbone.set_attn_implementation("sdpa")


def unfused_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which ``scaled_dot_product_attention`` multiplies matrices one by one on a CPU."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
