"""Check this machine before a run: one finding a line, with advice."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import psutil
import torch
from rich.table import Table

from benchmarks.measure.environment import usable_cores
from benchmarks.tasks.loader import list_tasks, spec_of, task_shipment
from benchmarks.terminal import filled_table
from consistentee.backbones.catalog import list_backbones
from consistentee.backbones.hub import HubError, ask
from consistentee.backbones.wheels import Shipment, cache_dir, is_fetched
from consistentee.models.base import chosen_device
from consistentee.training.loop import precision_used


class Finding(NamedTuple):
    """One line of the report; with advice it is a warning, or a problem."""

    subject: str
    state: str
    advice: str = ""
    is_problem: bool = False

    @property
    def verdict(self) -> str:
        """The word that the line begins with."""
        return "problem" if self.is_problem else "warn" if self.advice else "ok"


def examine(data_dir: Path | None) -> list[Finding]:
    """Examine the machine; takes some seconds. Raises UserError for a device that is not there."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("consistentee", "torch", "transformers"))
    return [
        Finding("libraries", f"Python {platform.python_version()}, {versions}"),
        _check_device(),
        _check_load(),
        _check_cache(),
        _check_data(data_dir),
        _check_hub(),
        _check_packages(),
    ]


def report(findings: list[Finding]) -> Table:
    """Return the findings as a table for the terminal."""
    rows = [(finding.verdict, finding.subject, finding.state, finding.advice) for finding in findings]
    return filled_table(["", "subject", "state", "advice"], [], rows)


def _check_device() -> Finding:
    device, threads, cores = chosen_device(), torch.get_num_threads(), usable_cores()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    state = f"{name}, {threads} threads on {cores} usable cores; auto trains in {precision_used('auto', device)}"
    advice = f"set OMP_NUM_THREADS={cores}: more threads than cores slow all down" if threads > cores else ""
    return Finding("device", state, advice)


def _check_load() -> Finding:
    load, cores = psutil.getloadavg()[0], usable_cores()
    advice = "times measured now would be disturbed; wait, or stop the other programs" if load > 0.5 * cores else ""
    return Finding("load", f"{load:.1f} on {cores} cores", advice)


def _check_cache() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 2**30
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set CONSISTENTEE_CACHE to a folder of yours"
        return Finding("cache", f"{folder}: {error.strerror}", advice, is_problem=True)
    advice = "free some space, or set CONSISTENTEE_CACHE to a larger disk" if free < 3 else ""
    return Finding("cache", f"{folder}, {free:.1f} GiB free", advice, is_problem=free < 0.5)


def _check_data(data_dir: Path | None) -> Finding:
    if data_dir is None:
        advice = "give --data DIR or set CONSISTENTEE_DATA; without it, tasks come from packages and the hub"
        return Finding("data", "no folder given", advice)
    layouts = {name: spec_of(name)[0].files for name in list_tasks()}
    held = [name for name, files in layouts.items() if files and (data_dir / files.folder / files.train).is_file()]
    if held:
        return Finding("data", f"{data_dir} holds {', '.join(held)}")
    return Finding("data", f"{data_dir} holds no task", "see docs/tasks.md for the layout that tasks expect")


def _check_hub() -> Finding:
    try:
        ask("model_info", "gpt2")
    except HubError as error:
        return Finding("hub", str(error), "backbones and tasks in packages need no hub")
    return Finding("hub", "reachable")


def _check_packages() -> Finding:
    backbones = {name: backbone.source for name, backbone in list_backbones().items()}
    sources = backbones | {name: task_shipment(name) for name in list_tasks()}
    shipments = {name: source for name, source in sources.items() if isinstance(source, Shipment)}
    missing = [f"{name} ({one.size / 2**20:.0f} MiB)" for name, one in shipments.items() if not is_fetched(one)]
    if missing:
        advice = "fetched when needed, or now: consistentee fetch NAME"
        return Finding("packages", f"not in the cache: {', '.join(missing)}", advice)
    return Finding("packages", f"in the cache: {', '.join(shipments)}")
