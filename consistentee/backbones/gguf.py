"""Models in GGUF files: dequantised once with the package ``gguf``, and kept as safetensors in the cache."""

import sys
from pathlib import Path

from consistentee.backbones.pretrained import check_complete, reading
from consistentee.files import cache_dir, hash_file, only_one, replacing


def dequantised(file: Path) -> Path:
    """Return a folder with the model of a GGUF file and its tokenizer, made on the first call.

    The weights are float32, exactly what the file's blocks stand for: 4 bytes a weight, whatever the file's type.

    Raises UserError for a file that is damaged, lacks weights or a tokenizer, or holds another architecture than the
    steppers know, for a cache that cannot be written, and for a full disk.
    """
    folder = cache_dir() / "dequantised" / f"{file.stem}-{hash_file(file)[:16]}"
    if folder.is_dir():
        return folder
    with only_one(folder):
        if not folder.is_dir():  # another process may have made it while this one waited
            print(f"dequantising {file.name} into {folder}", file=sys.stderr)
            with replacing(folder) as partial:
                _convert(file, partial)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from consistentee.backbones.decoders import check_decoder_family

    with reading(file):
        check_decoder_family(GGUFReader(file).fields["general.architecture"].contents())
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # What from_pretrained does with a GGUF file needs accelerate besides.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
        check_complete(file, dict(model.named_parameters()).keys() - weights.keys())
        model.load_state_dict(weights, strict=False)  # what is tied is there once
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
