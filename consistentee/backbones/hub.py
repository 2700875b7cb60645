"""The Hugging Face hub, asked in a way that fails within seconds where it cannot be reached."""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from consistentee.backbones.pretrained import NO_SAFETENSORS, check_pretrained
from consistentee.errors import UserError, reason_of
from consistentee.files import is_disk_full

_FILES: dict[str, Any] = {
    "allow_patterns": [
        *("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt"),
        *("special_tokens_map.json", "generation_config.json", "chat_template.jinja", "added_tokens.json"),
        *("spiece.model", "*.sentencepiece.*", "1_Pooling/config.json"),
    ],
    "ignore_patterns": ["*/*.safetensors"],  # folders of a repository hold other formats of the same weights
}
_TIMEOUT = 5.0
DEADLINE = 8.0
"""Seconds until the hub is given up: the library's timeout does not cover the look-up of a host name."""


class HubError(Exception):
    """The hub cannot be reached, or has no such repository that may be read without a login."""


def model_snapshot(repository: str) -> Path:
    """Return the local folder of a model repository, downloaded into the hub's ordinary cache on the first call.

    Raises HubError, and UserError when the repository has no safetensors weights.
    """
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(repository, local_files_only=True, **_FILES))
        check_pretrained(cached)
        return cached
    except (OSError, UserError):  # not there, or not complete
        pass
    names = [file.rfilename for file in ask("model_info", repository).siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise UserError(f"the hub's model {repository} {NO_SAFETENSORS}")
    try:
        return Path(snapshot_download(repository, **_FILES))
    except Exception as error:  # connection, disk, hash: the libraries below have no common ancestor
        if is_disk_full(error):
            raise UserError(
                f"the disk that holds the hub's cache is full; free some space, or set HF_HOME ({error})"
            ) from error
        raise HubError(f"the download broke off: {reason_of(error)}") from error


def ask(question: str, repository: str) -> Any:
    """Return what ``HfApi`` answers to ``model_info`` or ``dataset_info``, within seconds. Raises HubError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    answer: Future[Any] = Future()

    def wait_for_it() -> None:
        try:
            answer.set_result(getattr(HfApi(), question)(repository, timeout=_TIMEOUT))
        except Exception as error:  # raised again in the thread of the caller
            answer.set_exception(error)

    threading.Thread(target=wait_for_it, daemon=True).start()
    try:
        return answer.result(DEADLINE)
    except RepositoryNotFoundError as error:
        raise HubError(f"the hub has no public repository {repository}") from error
    except Exception as error:  # connection, proxy, certificate, HTTP: the libraries below have no common ancestor
        reason = reason_of(error) if answer.done() else f"no answer within {DEADLINE:g} seconds"
        raise HubError(f"the hub cannot be reached ({reason})") from error
