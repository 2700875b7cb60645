"""Stock decoders on disk."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from consistentee.backbones.decoders import check_decoder_family
from consistentee.backbones.pretrained import check_complete, read_config, read_model
from consistentee.files import hash_tensors
from consistentee.models.base import BACKBONE_FOLDER
from consistentee.models.decoder.lora import base_weights


def load_backbone(folder: str | Path) -> Any:
    """Load a stock causal language model in float32.

    Raises UserError for another architecture, for files that cannot be read, and for weights that are missing.
    """
    check_decoder_family(read_config(folder).model_type)
    backbone, missing = read_model(folder, AutoModelForCausalLM)
    check_complete(folder, missing)
    return backbone


def hash_backbone(backbone: Any) -> str:
    """Return a hash of a stock model's weights as they are loaded, in float32 and without LoRA.

    What is tied is counted once.
    """
    return hash_tensors(base_weights({name: weight.float() for name, weight in backbone.named_parameters()}))


def write_backbone(folder: Path, backbone: Any) -> None:
    """Write the backbone as a stock model, without LoRA."""
    backbone.save_pretrained(folder / BACKBONE_FOLDER, state_dict=base_weights(backbone.state_dict()))
