"""Read stock models and tokenizers from a folder: no code of it runs, and damage is one sentence that names a file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from consistentee.errors import UserError, reason_of

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["mean", "cls"]
"""How the tokens of a layer become one vector: the mean of the real ones, or the first."""

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""One of them holds the vocabulary, whatever the tokenizer."""
NO_SAFETENSORS = "has no safetensors weights; pickle weights (.bin, .pt) are never loaded, so convert them first"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_JSON_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer.json",
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Files that transformers reads, each a JSON object."""


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Raise UserError that names a file or folder for any error while it is read.

    The libraries below have no common exception for files that are damaged.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of the tokenizers library; it is no Exception
        if isinstance(error, (UserError, MemoryError)) or not (is_panic or isinstance(error, Exception)):
            raise
        raise UserError(f"{place} cannot be read: {reason_of(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError that names the file."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it must hold a JSON object")
        return content


def _check_json(folder: str | Path) -> None:
    for name in _JSON_FILES:
        if (Path(folder) / name).is_file():
            read_json(Path(folder) / name)


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file. Raises UserError that names the file if it is damaged or a weight is not finite."""
    from safetensors.torch import load_file

    with reading(path):
        weights = load_file(path)
        check_finite(weights)
        return weights


def check_finite(weights: "Mapping[str, Tensor]") -> None:
    """Raise ValueError that names the first tensor with a value that is not finite."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def check_complete(source: object, missing: Iterable[str]) -> None:
    """Raise UserError if weights are ``missing``, by name: transformers would draw them at random."""
    absent = sorted(missing)
    if absent:
        raise UserError(f"{source} lacks {len(absent)} of the model's weights, {absent[0]} among them")


def check_pretrained(folder: Path) -> dict[str, Any]:
    """Return the configuration in a stock model's folder. Raises UserError unless all files of a model are there."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no {CONFIG_FILE}, so it is not a pretrained model")
    config = read_json(folder / CONFIG_FILE)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} {NO_SAFETENSORS}")
    for index in folder.glob("*.safetensors.index.json"):
        with reading(index):
            absent = {name for name in read_json(index)["weight_map"].values() if not (folder / name).is_file()}
        if absent:
            raise UserError(f"{folder} lacks {', '.join(sorted(absent))}, which {index.name} names")
    check_tokenizer_files(folder)
    return config


def check_tokenizer_files(folder: Path) -> None:
    """Raise UserError if a folder has no vocabulary: transformers would make up an empty tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} holds no tokenizer; save it there too ({', '.join(TOKENIZER_FILES)})")


def read_config(folder: str | Path) -> Any:
    """Read the configuration of a stock model. Raises UserError that names the file."""
    from transformers import AutoConfig

    path = Path(folder) / CONFIG_FILE
    read_json(path)
    _check_json(folder)
    with reading(path):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_model(folder: str | Path, auto_class: Any) -> tuple[Any, set[str]]:
    """Read a stock model in float32, by ``AutoModel`` or a class like it, and the names of weights that files lack.

    Raises UserError for files that cannot be read, and for weights that are not finite.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = read_config(folder)
    files = sorted(Path(folder).glob("*.safetensors"))
    with reading(files[0] if len(files) == 1 else folder):
        model, found = auto_class.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_kernels=False,  # a result must not depend on code that a hub has today
        )
        check_finite(dict(model.named_parameters()))
    return model, set(found["missing_keys"])


def read_tokenizer(folder: str | Path) -> Any:
    """Read a tokenizer and try it on a word. Raises UserError that names the file or the folder."""
    from transformers import AutoTokenizer

    _check_json(folder)
    check_tokenizer_files(Path(folder))
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a")
        tokenizer("a", truncation=True, max_length=8)
        return tokenizer
