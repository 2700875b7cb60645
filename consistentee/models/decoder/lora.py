"""Low-rank adaptation (LoRA) of a decoder's layers, with peft, of the extra ``lora``."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from consistentee.errors import UserError
from consistentee.extras import check_extra

_MARK = ".lora_"
_WRAPPED = ".base_layer."


@dataclass(frozen=True)
class LoraSpec:
    """Which modules of every layer are adapted, by the last part of their name, and by how many directions."""

    rank: int
    targets: tuple[str, ...]


def add_lora(backbone: nn.Module, spec: LoraSpec) -> None:
    """Add a trainable low-rank path to the modules that ``spec`` names: it gives zero until it is trained.

    The scale is 1 (alpha = rank). Raises UserError without peft, and where the backbone has no such modules.
    """
    check_extra("lora", "LoRA")
    from peft import LoraConfig, inject_adapter_in_model

    linear: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            linear[name.rpartition(".")[2]] = module
    absent = sorted(set(spec.targets) - linear.keys())
    if absent or not spec.targets:
        raise UserError(f"the backbone has no modules named {absent} for LoRA; it has {', '.join(sorted(linear))}")
    transposed = isinstance(linear[spec.targets[0]], Conv1D)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.rank, target_modules=list(spec.targets), fan_in_fan_out=transposed)
    inject_adapter_in_model(config, backbone)
    backbone.requires_grad_(True)  # as the weights of a model are; stages say which of them they train


def merge_lora(backbone: nn.Module) -> None:
    """Merge what LoRA has learned into the weights, and undo it: passes cost nothing extra then."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [(name, module) for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in wrapped:
        parent, _, child = name.rpartition(".")
        module.merge()
        setattr(backbone.get_submodule(parent), child, module.get_base_layer())


def is_lora(name: str) -> bool:
    """Check whether a weight of this name belongs to LoRA."""
    return _MARK in name


def base_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the stock model among those of one with LoRA, by their stock names."""
    return {name.replace(_WRAPPED, "."): tensor for name, tensor in weights.items() if not is_lora(name)}
