"""Trained backbones of a run: cells whose backbone came out the same keep one file between them."""

import os
from contextlib import suppress
from pathlib import Path

from benchmarks.store.sealing import hash_file
from consistentee.files import PARTIAL, make_folder

LARGE_BYTES = 1_000_000  # bytes; what is smaller is not worth a link


def share_weights(model: Path, pool: Path) -> None:
    """Let equal weights of saved models be one file on the disk.

    Methods that share a stage save the same backbone, half a gigabyte for SmolLM2-135M, once a task.

    Args:
        model: folder of a saved model, in place of whose large files there are links afterwards, if the disk has them.
        pool: folder where each of these files lies by its hash; one that was damaged there is replaced.
    """
    for file in sorted(model.rglob("*.safetensors")):
        if file.stat().st_size < LARGE_BYTES:
            continue
        digest = hash_file(file)
        first = pool / f"{digest}.safetensors"
        make_folder(pool)
        with suppress(OSError):  # no links on this disk: the model has a copy of its own
            whole = first.exists() and first.stat().st_size == file.stat().st_size and hash_file(first) == digest
            source, place = (first, file) if whole else (file, first)
            link = file.with_name(f".{file.name}{PARTIAL}")
            os.link(source, link)
            link.replace(place)
            link.unlink(missing_ok=True)  # which is still there where both were one file
