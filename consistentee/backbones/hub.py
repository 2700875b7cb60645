"""The Hugging Face hub, asked in a way that fails within seconds where it cannot be reached."""

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consistentee.errors import UserError

_PATTERNS = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt"]
_PATTERNS += [
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "spiece.model",
    "*.sentencepiece.*",
    "1_Pooling/config.json",
]
_OTHER_FORMATS = ["*/*.safetensors"]  # folders of a repository hold other formats of the same weights
_TIMEOUT = 5.0
DEADLINE = 8.0
"""Seconds until the hub is given up: the library's timeout does not cover the look-up of a host name."""

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


class HubUnreachableError(Exception):
    """The hub does not answer, or only with an error that is not about the name asked for."""


class NotOnHubError(Exception):
    """The hub answers that there is no such repository, or none that may be read without a login."""


def model_snapshot(repository: str) -> Path:
    """Return the local folder of a model repository, downloaded into the hub's ordinary cache on the first call.

    Raises HubUnreachableError, NotOnHubError, and UserError when the repository has no safetensors weights.
    """
    from huggingface_hub import snapshot_download

    cached = _cached_snapshot(repository)
    if cached is not None:
        return cached
    info = ask("model_info", repository)
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise UserError(f"the hub's model {repository} {NO_SAFETENSORS}")
    try:
        return Path(snapshot_download(repository, allow_patterns=_PATTERNS, ignore_patterns=_OTHER_FORMATS))
    except Exception as error:  # connection, disk, hash: the libraries below have no common ancestor
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk that holds the hub's cache is full; free some space, or set HF_HOME ({error})"
            ) from error
        raise HubUnreachableError(f"the download broke off: {_first_line(error)}") from error


def ask(question: str, repository: str) -> Any:
    """Return what ``huggingface_hub.HfApi`` answers to ``model_info`` or ``dataset_info``, within seconds.

    Raises HubUnreachableError and NotOnHubError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return _within_deadline(lambda: getattr(HfApi(), question)(repository, timeout=_TIMEOUT))
    except RepositoryNotFoundError as error:
        raise NotOnHubError(f"the hub has no public repository {repository}") from error
    except Exception as error:  # connection, proxy, certificate, HTTP: the libraries below have no common ancestor
        raise HubUnreachableError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _within_deadline(call: Callable[[], Any]) -> Any:
    answers: list[Any] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(call())
        except Exception as error:  # handed over to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {DEADLINE:g} seconds")
    return answers[0]


def _cached_snapshot(repository: str) -> Path | None:
    """Return the folder of a snapshot that was downloaded before and is complete, without asking the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            repository, allow_patterns=_PATTERNS, ignore_patterns=_OTHER_FORMATS, local_files_only=True
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    folder = Path(snapshot)
    has_tokenizer = any((folder / name).exists() for name in TOKENIZER_FILES)
    complete = (folder / "config.json").exists() and any(folder.glob("*.safetensors")) and has_tokenizer
    return folder if complete and not _missing_shards(folder) else None


def _missing_shards(folder: Path) -> list[str]:
    missing = []
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing += [shard for shard in sorted(shards) if not (folder / shard).exists()]
    return missing
