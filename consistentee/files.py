"""Files that are written whole or not at all, the full disk that prevents it, and tensors in files."""

import errno
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from consistentee.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_logger = logging.getLogger(__name__)

PARTIAL = ".partial"  # ending of what a killed process may leave half-written; safe to delete
OLD = ".old"  # ending of the hidden name that a folder has while another one takes its place
LOCK = ".lock"  # ending of the hidden files that only_one locks; empty, and safe to delete while nobody computes

MAPPED_BYTES = 2**30
"""Larger tensors, and files of tensors, are memory-mapped, so that they may exceed the memory of the machine."""

_FULL_DISK_CODES = (errno.ENOSPC, errno.EDQUOT)
_HASHED_TOGETHER = 4096  # rows


class DiskFullError(UserError):
    """There is no room for what comes next: the run ends, and everything finished is kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"disk full while writing {path}: everything finished before is kept; free some space and run again"
        )
        self.path = path

    def __reduce__(self) -> tuple[type["DiskFullError"], tuple[Path]]:
        return DiskFullError, (self.path,)  # it travels from a worker to the run


def cache_dir() -> Path:
    """Return the folder of everything fetched or computed once: CONSISTENTEE_CACHE, or the user's cache directory."""
    return Path(os.environ.get("CONSISTENTEE_CACHE") or user_cache_dir("consistentee"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file or a folder; at the end it becomes ``path``, whole and on the disk.

    Whatever ends the block early, a kill included, leaves ``path`` as it was. A kill between the two renames that swap
    a folder leaves the old one under a hidden name, see :func:`settle_swap`. Raises DiskFullError.
    """
    temporary: Path | None = None
    try:
        settle_swap(path)
        make_folder(path.parent)
        # Beside its place, so that it gets there by a rename on the same disk.
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
        made = temporary / path.name
        yield made
        for part in [made, *made.rglob("*")]:
            _sync(part)
        if path.is_dir():  # a folder cannot be renamed over another one
            path.rename(_old(path))
        made.replace(path)
        _sync(path.parent)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(path) from error
        raise
    finally:
        settle_swap(path)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}{OLD}")


def settle_swap(path: Path) -> None:
    """Finish a swap of folders that was interrupted, or undo it if the new folder is not in place."""
    old = _old(path)
    if old.is_dir() and path.exists():
        shutil.rmtree(old)
    elif old.is_dir():
        old.rename(path)


def set_aside(path: Path, state: Literal["damaged", "stale"]) -> Path:
    """Rename a file or folder to ``NAME.damaged-N`` or ``NAME.stale-N`` with the first free N."""
    number = 1
    while (target := path.with_name(f"{path.name}.{state}-{number}")).exists():
        number += 1
    path.rename(target)
    return target


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one process at a time work on what becomes ``path``; others wait here, and should look for it then.

    The system itself lets go of the lock of a process that is killed.
    """
    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}{LOCK}")):
        yield


def clear_leftovers(root: Path) -> None:
    """Delete what killed processes left half-written below ``root``, and the lock files that nobody holds."""
    for leftover in list(root.rglob(f".*{PARTIAL}")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    for file in list(root.rglob(f".*{LOCK}")):
        lock = FileLock(file, timeout=0)
        try:
            with lock:
                file.unlink(missing_ok=True)
        except Timeout:  # a worker that outlived its run is still at it
            continue


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises UserError where that is not allowed, OSError on a full disk."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"cannot write to {path}: {error.strerror}") from error


def is_disk_full(error: BaseException | None) -> bool:
    """Check whether an error or its cause is a full disk; native libraries report it only in their message."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _FULL_DISK_CODES):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(tensors: "dict[str, Tensor]", path: Path) -> None:
    """Write tensors as safetensors, atomically, with a hash of them. Raises DiskFullError."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        metadata = {"sha256": _hash_with_shapes(tensors)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_tensors(path: Path) -> "dict[str, Tensor] | None":
    """Read a file of :func:`save_tensors`; None if there is none. A damaged one is named and set aside."""
    if not path.is_file():
        return None
    try:
        return checked_tensors(path)
    except UserError as error:
        _logger.warning("%s; set aside as %s, and computed again", error, set_aside(path, "damaged").name)
        return None


def checked_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a file of :func:`save_tensors`. Raises UserError if it does not hold what was written."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(path) if path.stat().st_size <= MAPPED_BYTES else _map_tensors(path)
        with safe_open(path, framework="np") as file:  # for torch it would map the file, however large
            written = (file.metadata() or {"sha256": None})["sha256"]  # None in files that are older than hashes
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if written is not None and written != _hash_with_shapes(tensors):
        raise UserError(f"{path} is damaged (its tensors do not have the hash that they were written with)")
    return tensors


def _hash_with_shapes(tensors: "dict[str, Tensor]") -> str:
    shapes = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())]
    return hash_json([hash_tensors(tensors), shapes])


def _map_tensors(path: Path) -> "dict[str, Tensor]":
    """Map a file of tensors; safetensors does so too, but the system refuses it a file larger than the memory."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="np"):  # checks the header
        pass
    with path.open("rb") as file:
        header_bytes = 8 + int.from_bytes(file.read(8), "little")
        described = json.loads(file.read(header_bytes - 8))
        if sys.platform == "linux":
            content = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | 0x4000)  # MAP_NORESERVE
        else:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    dtypes = {"BOOL": torch.bool, "U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    dtypes |= {"F64": torch.float64, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
    tensors = {}
    for name, part in described.items():
        if name != "__metadata__":
            start, end = (header_bytes + offset for offset in part["data_offsets"])
            tensors[name] = torch.frombuffer(content, dtype=torch.uint8, count=end - start, offset=start)
            tensors[name] = tensors[name].view(dtypes[part["dtype"]]).view(part["shape"])
    return tensors


def empty_tensor(shape: Sequence[int], dtype: "torch.dtype") -> "Tensor":
    """Allocate a tensor on the CPU, in memory or, above :data:`MAPPED_BYTES`, in a memory-mapped file.

    The file is in the folder for temporary files, which the environment variable TMPDIR sets, and has no name there:
    the system deletes it with the tensor, or with the process.

    Raises:
        DiskFullError: the folder for temporary files has no room for it.
    """
    import torch

    size = math.prod(shape) * dtype.itemsize
    if size <= MAPPED_BYTES:
        return torch.empty(*shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process with SIGBUS
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(Path(tempfile.gettempdir())) from error
        raise
    return torch.frombuffer(mapped, dtype=dtype).view(*shape)


def computed_once(path: Path, compute: "Callable[[], dict[str, Tensor]]") -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file, which are computed and written first if there is none.

    Processes that want the same file at the same time take turns. Raises DiskFullError.
    """
    with only_one(path):
        tensors = load_tensors(path)
        if tensors is None:
            save_tensors(compute(), path)
            tensors = checked_tensors(path)  # which maps the file, and so frees the memory
        return tensors


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: object) -> str:
    """Return a hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def hash_tensors(tensors: "dict[str, Tensor]") -> str:
    """Return a hash of names and contents."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        tensor = tensors[name].detach()
        for part in tensor.split(_HASHED_TOGETHER) if tensor.ndim else [tensor]:  # a copy is made of a part alone
            digest.update(part.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
