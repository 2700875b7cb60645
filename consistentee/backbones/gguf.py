"""Models in GGUF files: dequantised once with the package ``gguf``, and kept as safetensors in the cache."""

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistentee.backbones.pretrained import check_complete, reading
from consistentee.errors import UserError
from consistentee.files import cache_dir, only_one, replacing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_ARCHITECTURE = "general.architecture"


def dequantised(file: Path) -> Path:
    """Return a folder with the model of a GGUF file and its tokenizer, made on the first call.

    The weights are float32, exactly what the file's blocks stand for: 4 bytes a weight, whatever the file's type.

    Raises UserError for a file that is damaged, lacks weights or a tokenizer, or holds another architecture than the
    steppers know, for a cache that cannot be written, and for a full disk.
    """
    folder = cache_dir() / "dequantised" / f"{file.stem}-{_hash(file)[:16]}"
    if folder.is_dir():
        return folder
    with only_one(folder):
        if not folder.is_dir():  # another process may have made it while this one waited
            _check_architecture(file)
            print(f"dequantising {file.name} into {folder}", file=sys.stderr)
            with replacing(folder) as partial:
                _convert(file, partial)
    return folder


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_architecture(file: Path) -> None:
    from gguf import GGUFReader

    from consistentee.backbones.decoders import check_decoder_family

    try:
        family = GGUFReader(file).fields[_ARCHITECTURE].contents()
    except Exception as error:  # the reader checks little: a damaged file ends in any error of numpy
        raise UserError(f"{file} is damaged, or no GGUF file: {error}") from error
    try:
        check_decoder_family(family)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _convert(file: Path, folder: Path) -> None:
    """Write model and tokenizer into ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with reading(file):
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        weights = _weights(file, model)
        check_complete(file, dict(model.named_parameters()).keys() - weights.keys())
        model.load_state_dict(weights, strict=False)  # what is tied is there once
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _weights(file: Path, model: Any) -> "dict[str, Tensor]":
    """Dequantise the tensors of a file that are parameters of a stock model, by the names and layout of the model."""
    import gguf
    import torch
    from transformers.pytorch_utils import Conv1D

    reader = gguf.GGUFReader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    family = reader.fields[_ARCHITECTURE].contents()
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    heads = {}
    if family == "llama":
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    weights = {}
    for name in dict(model.named_parameters()):
        module, _, ending = name.rpartition(".")
        tensor = stored.get(f"{names.get_name(module)}.{ending}")
        if tensor is None:
            continue
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        projection = module.rpartition(".")[2]
        if projection in heads:
            array = _halves_apart(array, heads[projection])
        elif array.ndim == 2 and isinstance(model.get_submodule(module), Conv1D):
            array = array.T
        weights[name] = torch.tensor(array)
    return weights


def _halves_apart(array: "np.ndarray", heads: int) -> "np.ndarray":
    """Order the rows of a projection as transformers rotates them: first halves first; GGUF alternates the halves."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
