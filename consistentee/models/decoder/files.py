"""Stock decoders on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from consistentee.backbones.decoders import check_complete, check_decoder_family
from consistentee.errors import UserError
from consistentee.files import hash_tensors
from consistentee.models.base import BACKBONE_FOLDER
from consistentee.models.decoder.lora import base_weights


def load_backbone(folder: str | Path) -> Any:
    """Return the stock causal language model in a folder, in float32.

    Raises UserError for another architecture, for files that cannot be read, and where weights are missing: the library
    would put random ones in their place.
    """
    transformers.utils.logging.disable_progress_bar()
    with _naming(folder):
        check_decoder_family(AutoConfig.from_pretrained(folder).model_type)
        backbone, found = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    check_complete(folder, found["missing_keys"])
    return backbone


def load_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer in a folder. Raises UserError for files that cannot be read."""
    with _naming(folder):
        return AutoTokenizer.from_pretrained(folder)


@contextmanager
def _naming(folder: str | Path) -> Iterator[None]:
    """Say of which folder it is that the libraries cannot read something."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files end in whatever the libraries below say of them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{folder} cannot be read as a decoder: {reason}") from error


def hash_backbone(backbone: Any) -> str:
    """Return a hash of a stock model's weights as they are loaded, in float32 and without LoRA.

    What is tied is counted once.
    """
    return hash_tensors(base_weights({name: weight.float() for name, weight in backbone.named_parameters()}))


def write_backbone(folder: Path, backbone: Any) -> None:
    """Write the backbone as a stock model, without LoRA."""
    backbone.save_pretrained(folder / BACKBONE_FOLDER, state_dict=base_weights(backbone.state_dict()))
