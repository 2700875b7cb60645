"""SHA-256 of large files, read once: what identifies the weights that a backbone is loaded from."""

import json
from pathlib import Path

from benchmarks.store.sealing import hash_file, unsealed, write_json


class FileHashes:
    """SHA-256 of files, remembered in one JSON file by path, size and time of change."""

    def __init__(self, cache_file: Path) -> None:
        self._cache_file = cache_file
        self._known: dict[str, list[int | str]] = self._load()
        self._changed = False

    def _load(self) -> dict[str, list[int | str]]:
        try:
            text, fault = unsealed(self._cache_file.read_text(encoding="utf-8"))
            known = {} if fault else json.loads(text)
        except (OSError, ValueError):  # nothing but time is lost with this file
            return {}
        return known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        """Return the hash of a file, read only if it changed since the last time."""
        status = path.stat()
        entry: list[int | str] = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path))
        if not (isinstance(known, list) and known[:2] == entry):
            known = [*entry, hash_file(path)]
            self._known[str(path)] = known
            self._changed = True
        return str(known[2])

    def save(self) -> None:
        """Write the cache, if there is anything new."""
        if self._changed:
            write_json(self._cache_file, json.dumps(self._known, indent=1))
            self._changed = False


def file_hashes(folder: Path, hashes: FileHashes) -> dict[str, str]:
    """Return the hashes of the files of a pretrained model, by their place in its folder."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors", ".txt", ".model"})
    return {path.relative_to(folder).as_posix(): hashes.sha256(path) for path in files}
