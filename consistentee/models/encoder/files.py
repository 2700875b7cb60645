"""Stock encoders on disk, and what multi-exit encoders are saved with beside their weights."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from consistentee.backbones.cascade import COMPANION, CascadeStepper
from consistentee.backbones.encoders import EncoderStepper, Stepper, stepper_for
from consistentee.backbones.token_exits import SCHEDULE, TokenExitStepper
from consistentee.models.base import BACKBONE_FOLDER


def load_backbone(folder: str | Path) -> tuple[Any, dict[str, Tensor] | None]:
    """Return the stock encoder in a folder, in float32 and without its pooler, and the pooler's weights if it has one.

    Raises what transformers raises for files that cannot be read.
    """
    transformers.utils.logging.disable_progress_bar()
    backbone = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    return backbone, take_pooler(backbone)


def load_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer in a folder."""
    return AutoTokenizer.from_pretrained(folder)


def take_pooler(backbone: Any) -> dict[str, Tensor] | None:
    """Remove the stock pooler, so that no pass pays for what is not read; return its weights, if it has one.

    ALBERT's pooler is a bare linear layer, the others' has it inside.
    """
    pooler = getattr(backbone, "pooler", None)
    if pooler is None:
        return None
    backbone.pooler = None
    dense = getattr(pooler, "dense", pooler)
    return {name: tensor.clone() for name, tensor in dense.state_dict().items()}


def write_configs(folder: Path, stepper: Stepper) -> None:
    """Write the configuration of every stock model that a stepper runs."""
    for name, backbone in stepper.backbones.items():
        backbone.config.save_pretrained(folder / name)


def saved_stepper(folder: Path, weights: dict[str, Tensor]) -> Stepper:
    """Return what runs the layers of a saved model; the weights of stock models are yet to be loaded."""
    stepper = _unloaded_stepper(folder / BACKBONE_FOLDER)
    if any(name.startswith(f"{COMPANION}.") for name in weights):
        return CascadeStepper(_unloaded_stepper(folder / COMPANION), stepper)
    return TokenExitStepper.over(stepper, weights[SCHEDULE]) if SCHEDULE in weights else stepper


def _unloaded_stepper(folder: Path) -> EncoderStepper:
    backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    take_pooler(backbone)
    return stepper_for(backbone)
