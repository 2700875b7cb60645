"""Check this machine before a run: one finding a line, with advice."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
from rich.table import Table

from benchmarks.run.environment import usable_cores
from benchmarks.tasks.loader import list_tasks, load_task, spec_of, task_shipment
from benchmarks.terminal import filled_table
from consistentee.backbones.catalog import Backbone, list_backbones
from consistentee.backbones.hub import HubError, ask
from consistentee.backbones.wheels import Shipment, cache_dir, is_fetched
from consistentee.errors import UserError

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report: subject, verdict, state and advice."""

    subject: str
    verdict: Literal["ok", "warn", "problem"]
    state: str
    remedy: str = ""


def examine(data_dir: Path | None) -> list[Finding]:
    """Examine the machine, and load the backbones and tasks that are in the cache; takes some seconds."""
    found = [check_libraries(), check_device(), check_load(), check_cache(), check_data(data_dir), check_hub()]
    return [*found, *check_shipments()]


def check_libraries() -> Finding:
    """Name the versions of the main libraries; ``pip check`` finds versions that do not fit."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("consistentee", "torch", "transformers"))
    return Finding("libraries", "ok", f"Python {platform.python_version()}, {versions}")


def check_device() -> Finding:
    """Name the device of models, its threads, and the precision that ``auto`` stands for there."""
    try:
        import torch

        from consistentee.models.base import chosen_device
        from consistentee.training.loop import precision_used

        device = chosen_device()
    except (ImportError, OSError, UserError) as error:
        return Finding("device", "problem", str(error), "install torch again, or give another --device")
    threads, cores = torch.get_num_threads(), usable_cores()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    state = f"{name}, {threads} threads on {cores} usable cores; auto trains in {precision_used('auto', device)}"
    if threads > cores:
        return Finding("device", "warn", state, f"set OMP_NUM_THREADS={cores}: more threads than cores slow all down")
    return Finding("device", "ok", state)


def check_load() -> Finding:
    """Check whether other programs run, which would disturb every measured time."""
    load, cores = psutil.getloadavg()[0], usable_cores()
    state = f"{load:.1f} on {cores} cores"
    if load > 0.5 * cores:
        return Finding("load", "warn", state, "times measured now would be disturbed; wait, or stop the other programs")
    return Finding("load", "ok", state)


def check_cache() -> Finding:
    """Check the cache folder and its disk."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / _GIB
        fault = None if os.access(folder, os.W_OK) else "not writable"
    except OSError as error:
        fault = error.strerror
    if fault:
        return Finding("cache", "problem", f"{folder}: {fault}", "set CONSISTENTEE_CACHE to a folder of yours")
    state = f"{folder}, {free:.1f} GiB free"
    if free < 3:
        advice = "free some space, or set CONSISTENTEE_CACHE to a larger disk"
        return Finding("cache", "problem" if free < 0.5 else "warn", state, advice)
    return Finding("cache", "ok", state)


def check_data(data_dir: Path | None) -> Finding:
    """Check which tasks the data folder holds."""
    if data_dir is None:
        advice = "give --data DIR or set CONSISTENTEE_DATA; without it, tasks come from packages and the hub"
        return Finding("data", "warn", "no folder given", advice)
    layouts = {name: spec_of(name)[0].files for name in list_tasks()}
    held = [name for name, files in layouts.items() if files and (data_dir / files.folder / files.train).is_file()]
    if held:
        return Finding("data", "ok", f"{data_dir} holds {', '.join(held)}")
    return Finding("data", "warn", f"{data_dir} holds no task", "see docs/tasks.md for the layout that tasks expect")


def check_hub() -> Finding:
    """Ask the Hugging Face hub about a small model, and give up within seconds."""
    try:
        ask("model_info", "gpt2")
    except HubError as error:
        shipped = [name for name, backbone in list_backbones().items() if isinstance(backbone.source, Shipment)]
        return Finding("hub", "warn", str(error), f"no hub needed for {', '.join(shipped)}")
    return Finding("hub", "ok", "reachable")


def check_shipments() -> Iterator[Finding]:
    """Load every backbone and task that comes in a package and is in the cache; name those that are not fetched."""
    loads: dict[str, tuple[Shipment, Callable[[], object]]] = {
        name: (backbone.source, partial(_load_backbone, backbone))
        for name, backbone in list_backbones().items()
        if isinstance(backbone.source, Shipment)
    }
    loads |= {name: (found, partial(load_task, name)) for name in list_tasks() if (found := task_shipment(name))}
    for name, (shipment, load) in loads.items():
        if not is_fetched(shipment):
            advice = f"fetched when needed, or now: consistentee fetch {name}"
            yield Finding(name, "warn", f"not in the cache, {shipment.size / 2**20:.0f} MiB", advice)
            continue
        try:
            load()
            yield Finding(name, "ok", "in the cache, and can be loaded")
        except Exception as error:  # any fault is reported only
            folder = cache_dir() / "unpacked" / shipment.name
            yield Finding(name, "problem", str(error), f"delete {folder}, then: consistentee fetch {name}")


def _load_backbone(backbone: Backbone) -> object:
    import consistentee as ee

    if backbone.kind == "decoder":
        return ee.MultiExitDecoder.from_backbone(backbone.name)
    return ee.MultiExitModel.from_backbone(backbone.name, num_labels=2)


def report(findings: list[Finding]) -> Table:
    """Return the findings as a table for the terminal."""
    rows = [(finding.verdict, finding.subject, finding.state, finding.remedy) for finding in findings]
    return filled_table(["", "subject", "state", "advice"], [], rows)
