"""SHA-256 of files: in JSON files that are checked when they are read, of backbones, and of weights that models share.

A JSON file written here begins with the hash of its own text and the hashes of the files in its folder that belong to
it, so that one flipped bit in a record or in its rows is noticed. Older files, without hashes, are read unchecked.
"""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from consistentee.files import PARTIAL, hash_file, make_folder, replacing

LARGE_BYTES = 1_000_000  # smaller files of weights are not worth a link

_SEAL = re.compile(r'\{\n "sha256": "([0-9a-f]{64})"(,\n "files": (\{[^{}]*\}),\n.*)', re.DOTALL)
_OTHER_HASH = "not the content that was written"
_MODEL_FILES = {".json", ".safetensors", ".txt", ".model"}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, text: str, files: Iterable[Path] = ()) -> None:
    """Write a JSON object of at least one field atomically, with hashes of its text and of files in its folder."""
    listed = {file.relative_to(path.parent).as_posix(): hash_file(file) for file in files}
    rest = f',\n "files": {json.dumps(listed)},\n{text.removeprefix("{").lstrip()}\n'
    write_text(path, f'{{\n "sha256": "{sha256(rest.encode()).hexdigest()}"{rest}')


def unsealed(text: str) -> tuple[str, str | None]:
    """Return the text that :func:`write_json` was given, and what is wrong with it."""
    seal = _SEAL.match(text)
    if seal is None:
        return text, None
    digest, rest, files = seal.groups()
    fault = None if sha256(rest.encode()).hexdigest() == digest else _OTHER_HASH
    return "{" + rest[len(',\n "files": ,') + len(files) :], fault


def file_fault(path: Path, *, sealed: bool = False) -> str | None:
    """Describe what is wrong with a JSON file that carries hashes, or which of its listed files has changed.

    If it is ``sealed``, it must be there and have hashes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return str(error) if sealed or not isinstance(error, FileNotFoundError) else None
    seal = _SEAL.match(text)
    if seal is None:
        return "it has no hashes" if sealed else None
    if fault := unsealed(text)[1]:
        return fault
    for name, digest in json.loads(seal[3]).items():
        try:
            if hash_file(path.parent / name) != digest:
                return f"{name}: {_OTHER_HASH}"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def hash_model(folder: Path) -> dict[str, str]:
    """Return the hashes of a pretrained model's files by their place in its folder; hidden files are no part of it."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in _MODEL_FILES)
    shown = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    return {file.as_posix(): hash_file(folder / file) for file in shown}


def share_weights(model: Path, pool: Path) -> None:
    """Keep equal weights of saved models once on the disk: methods that share a stage save the same backbone.

    The large files of a model's folder become links to those in ``pool``, by their hash; a damaged one is replaced.
    """
    make_folder(pool)
    for file in (file for file in sorted(model.rglob("*.safetensors")) if file.stat().st_size >= LARGE_BYTES):
        digest = hash_file(file)
        shared = pool / f"{digest}.safetensors"
        is_whole = shared.exists() and hash_file(shared) == digest
        source, place = (shared, file) if is_whole else (file, shared)
        with suppress(OSError):  # no links on this disk: the model has a copy of its own
            link = file.with_name(f".{file.name}{PARTIAL}")
            os.link(source, link)
            link.replace(place)
            link.unlink(missing_ok=True)  # which is still there where both were one file
