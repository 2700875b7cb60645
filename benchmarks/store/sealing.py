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


def listed_files(path: Path) -> dict[str, str]:
    """Return the hashes of the files that a JSON file lists, by name; none where it cannot be read."""
    try:
        seal = _SEAL.match(path.read_text(encoding="utf-8"))
        return dict(json.loads(seal[3])) if seal else {}
    except (OSError, ValueError):
        return {}


def file_fault(path: Path, *names: str) -> str | None:
    """Say which of the files that a JSON file lists is not as it was written; ``names``: look at these alone."""
    for name, digest in listed_files(path).items():
        if names and name not in names:
            continue
        try:
            if hash_file(path.parent / name) != digest:
                return f"{name}: {_OTHER_HASH}"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()
