"""JSON files with hashes: of their own text, and of the files in their folder that belong to them.

The hashes are the first two fields of the file, so that one flipped bit in a record or in its rows is noticed. Files
that are older than these fields are read without the check.
"""

import json
import re
from collections.abc import Iterable
from hashlib import file_digest, sha256
from pathlib import Path

from consistentee.files import replacing

_SEAL = re.compile(r'\{\n "sha256": "([0-9a-f]{64})"(,\n "files": (\{[^{}]*\}),\n.*)', re.DOTALL)
_OTHER_HASH = "not the content that was written"


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


def file_fault(path: Path, *names: str, sealed: bool = False) -> str | None:
    """Describe what is wrong with a JSON file that carries hashes, or which of its listed files has changed.

    Args:
        path: the file.
        names: look at these of the listed files alone.
        sealed: a file without hashes is a fault too, and so is none at all.
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
            if name in (names or [name]) and hash_file(path.parent / name) != digest:
                return f"{name}: {_OTHER_HASH}"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()
