"""Models in GGUF files: dequantised once with transformers and gguf, and kept as safetensors in the cache."""

import contextlib
import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consistentee.backbones.wheels import cache_dir
from consistentee.errors import UserError
from consistentee.files import only_one, replacing

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
    except Exception as error:  # the reader checks little: a damaged file ends in whatever numpy says of it
        raise UserError(f"{file} is damaged, or no GGUF file: {error}") from error
    try:
        check_decoder_family(family)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _convert(file: Path, folder: Path) -> None:
    """Write model and tokenizer into ``folder``."""
    import torch
    import transformers

    try:
        model, tokenizer = _load(file)
    except UserError:
        raise
    except Exception as error:  # what a file lacks shows wherever the conversion first asks for it
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{file} cannot be dequantised: {type(error).__name__}: {reason}") from error
    # The loaded model says of itself that it is quantised, and then refuses to be saved: a plain one takes its weights.
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(model.config).from_dict(settings)
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _load(file: Path) -> tuple[Any, Any]:
    """Return the model of a file, dequantised, and its tokenizer."""
    import torch
    import transformers

    from consistentee.backbones.decoders import check_complete

    unpacked = transformers.GgufConfig(dequantize=True)  # or weights may stay in their blocks
    with _without_progress_bars():
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=unpacked,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    check_complete(file, found["missing_keys"])
    return model, tokenizer


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers' bar of the tensors, which has no switch, off the terminal."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        yield
