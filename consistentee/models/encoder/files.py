"""Stock encoders on disk, and what multi-exit encoders are saved with beside their weights."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModel

from consistentee.backbones.cascade import COMPANION, CascadeStepper
from consistentee.backbones.encoders import EncoderStepper, Stepper, check_encoder_family, stepper_for
from consistentee.backbones.pretrained import check_complete, read_config, read_model
from consistentee.backbones.token_exits import SCHEDULE, TokenExitStepper
from consistentee.models.base import BACKBONE_FOLDER


def load_backbone(folder: str | Path) -> tuple[Any, dict[str, Tensor] | None]:
    """Load a stock encoder in float32 without its pooler, and the pooler's weights if the files have them.

    Raises UserError for another architecture, for files that cannot be read, and for other weights that are missing.
    """
    check_encoder_family(read_config(folder).model_type)
    backbone, missing = read_model(folder, AutoModel)
    pooler = take_pooler(backbone)
    poolers = {name for name in missing if name.startswith("pooler.")}
    check_complete(folder, missing - poolers)
    return backbone, None if poolers else pooler


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
    config = read_config(folder)
    check_encoder_family(config.model_type)
    backbone = AutoModel.from_config(config, trust_remote_code=False)
    take_pooler(backbone)
    return stepper_for(backbone)
