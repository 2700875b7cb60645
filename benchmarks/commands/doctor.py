"""Check this machine before a run: one finding a line, with advice."""

import platform
import shutil
from importlib.metadata import version
from tempfile import TemporaryFile
from typing import NamedTuple

import psutil
import torch

from benchmarks.measure.environment import usable_cores
from consistentee.backbones.hub import HubError, ask
from consistentee.files import cache_dir
from consistentee.models.base import chosen_device
from consistentee.training.loop import precision_used


class Finding(NamedTuple):
    """One line of the report: ``verdict`` is ok, warn or problem."""

    verdict: str
    subject: str
    state: str
    advice: str = ""


def examine() -> list[Finding]:
    """Examine the machine; takes some seconds. Raises UserError for a device that is not there."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("consistentee", "torch", "transformers"))
    return [
        Finding("ok", "libraries", f"Python {platform.python_version()}, {versions}"),
        *_check_processors(),
        _check_cache(),
        _check_hub(),
    ]


def _finding(subject: str, state: str, advice: str, is_bad: bool) -> Finding:
    return Finding("warn", subject, state, advice) if is_bad else Finding("ok", subject, state)


def _check_processors() -> list[Finding]:
    device, threads, cores = chosen_device(), torch.get_num_threads(), usable_cores()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    state = f"{name}, {threads} threads on {cores} usable cores; auto trains in {precision_used('auto', device)}"
    slow = f"set OMP_NUM_THREADS={cores}: more threads than cores slow all down"
    load = psutil.getloadavg()[0]
    busy = "times measured now would be disturbed; wait, or stop the other programs"
    return [
        _finding("device", state, slow, threads > cores),
        _finding("load", f"{load:.1f} on {cores} cores", busy, load > 0.5 * cores),
    ]


def _check_cache() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 2**30
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("problem", "cache", f"{folder}: {error.strerror}", "set CONSISTENTEE_CACHE to a folder of yours")
    advice = "free some space, or set CONSISTENTEE_CACHE to a larger disk"
    found = _finding("cache", f"{folder}, {free:.1f} GiB free", advice, free < 3)
    return found._replace(verdict="problem") if free < 0.5 else found


def _check_hub() -> Finding:
    try:
        ask("model_info", "gpt2")
    except HubError as error:
        return Finding("warn", "hub", str(error), "backbones and tasks in packages need no hub")
    return Finding("ok", "hub", "reachable")
