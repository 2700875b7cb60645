"""Tensors that are filled batch by batch: in memory, or in a memory-mapped file where they are large."""

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from consistentee import files


def empty_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate a tensor on the CPU, in memory or, above :data:`files.MAPPED_BYTES`, in a memory-mapped file.

    The file is in the folder for temporary files, which the environment variable TMPDIR sets, and has no name there:
    the system deletes it with the tensor, or with the process.

    Raises:
        DiskFullError: the folder for temporary files has no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= files.MAPPED_BYTES:
        return torch.empty(*shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process with SIGBUS
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        if files.is_disk_full(error):
            raise files.DiskFullError(Path(tempfile.gettempdir())) from error
        raise
    return torch.frombuffer(mapped, dtype=dtype).view(*shape)
