"""Check this machine before a run: one finding a line, with advice."""

import os
import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from packaging.requirements import Requirement

from benchmarks.store.environment import usable_cores
from benchmarks.tasks.loader import list_tasks, load_task, spec_of, task_shipment
from benchmarks.terminal import add_columns, plain_table
from consistentee.backbones.catalog import Backbone, list_backbones
from consistentee.backbones.hub import within
from consistentee.backbones.wheels import Shipment, cache_dir, is_fetched
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

HUB_SECONDS = 3.0
"""How long the hub is waited for."""
_GIB = 2**30
_COLOURS = {"ok": "green", "warn": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination: what was looked at, how it is, and what would help."""

    subject: str
    verdict: Literal["ok", "warn", "problem"]
    state: str
    remedy: str = ""


def examine(data_dir: Path | None) -> list[Finding]:
    """Examine the machine, and use the backbones and tasks that are in the cache; takes some seconds."""
    findings = [Finding("python", "ok", platform.python_version()), *check_requirements(), check_torch()]
    findings += [check_load(), check_cache(), check_precision(), check_data(data_dir), check_hub()]
    return [*findings, *check_shipments()]


def check_requirements() -> list[Finding]:
    """Look at the libraries that the project needs: one line for what matters, one for each that is missing or old."""
    found, faults = {}, []
    for text in requires("consistentee") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            faults.append(Finding(requirement.name, "problem", "missing", f"pip install '{requirement}'"))
            continue
        if not requirement.specifier.contains(found[requirement.name], prereleases=True):
            state = f"{found[requirement.name]}, needs {requirement.specifier}"
            faults.append(Finding(requirement.name, "problem", state, f"pip install '{requirement}'"))
    shown = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers") if name in found)
    return [Finding("libraries", "ok", f"{shown}, and {len(found)} in all"), *faults]


def check_torch() -> Finding:
    """Load torch, and look at its devices and threads."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "problem", f"cannot be loaded: {error}", "install torch again")
    from consistentee.models.base import chosen_device

    threads, cores = torch.get_num_threads(), usable_cores()
    try:
        device = chosen_device()
    except UserError as error:
        return Finding("device", "problem", str(error), "set --device or CONSISTENTEE_DEVICE to another one")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    state = f"{name}, {threads} threads on {cores} usable cores"
    if threads > cores:
        return Finding("device", "warn", state, f"set OMP_NUM_THREADS={cores}: more threads than cores slow all down")
    return Finding("device", "ok", state)


def check_precision() -> Finding:
    """Report what ``precision: auto`` is on this machine."""
    try:
        from consistentee.models.base import chosen_device
        from consistentee.training.loop import precision_used
    except (ImportError, OSError):
        return Finding("precision", "warn", "unknown: torch cannot be loaded")
    try:
        device = chosen_device()
    except UserError:
        return Finding("precision", "warn", "unknown: the device cannot be used")
    return Finding("precision", "ok", f"auto trains in {precision_used('auto', device)} on this {device.type}")


def check_load() -> Finding:
    """Look at what else the machine is doing: it would be in every time measured."""
    load, cores = psutil.getloadavg()[0], usable_cores()
    state = f"{load:.1f} on {cores} cores"
    if load > 0.5 * cores:
        return Finding("load", "warn", state, "times measured now would include other work; wait, or stop it")
    return Finding("load", "ok", state)


def check_cache() -> Finding:
    """Look at the cache folder and the disk under it."""
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
    if free < 0.5:
        return Finding("cache", "problem", state, "free some space, or set CONSISTENTEE_CACHE to a larger disk")
    if free < 3:
        return Finding("cache", "warn", state, "a large suite may need more; free some space")
    return Finding("cache", "ok", state)


def check_data(data_dir: Path | None) -> Finding:
    """Look at which tasks the data folder holds."""
    advice = "give --data DIR or set CONSISTENTEE_DATA; without it, tasks come from packages and the hub"
    if data_dir is None:
        return Finding("data", "warn", "no folder given", advice)
    if not data_dir.is_dir():
        return Finding("data", "problem", f"no folder {data_dir}", advice)
    held = [name for name in list_tasks() if _holds(data_dir, name)]
    state = f"{data_dir} holds {', '.join(held) or 'no task'}"
    if held:
        return Finding("data", "ok", state)
    return Finding("data", "warn", state, "the task files say which layout they expect; see docs/tasks.md")


def _holds(data_dir: Path, task: str) -> bool:
    files = spec_of(task)[0].files
    if files is None:
        return False
    wanted = [file for file in (files.train, files.validation, files.test) if file is not None]
    return all((data_dir / files.folder / file).is_file() for file in wanted)


def check_hub() -> Finding:
    """Ask the Hugging Face hub for an answer, of any kind, within seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "warn", "switched off by HF_HUB_OFFLINE", "unset it to fetch from the hub")
    try:
        within(HUB_SECONDS, lambda: _ask(constants.ENDPOINT))
        return Finding("hub", "ok", "reachable")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    shipped = ", ".join(name for name, backbone in list_backbones().items() if isinstance(backbone.source, Shipment))
    return Finding("hub", "warn", f"not reachable ({reason})", f"backbones that need no hub: {shipped}")


def _ask(address: str) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answered


def check_shipments() -> list[Finding]:
    """Use every backbone and task that travels in packages and is in the cache; name those that are not fetched yet."""
    findings = []
    for name, backbone in list_backbones().items():
        if isinstance(backbone.source, Shipment):
            findings.append(_check_shipment("backbone", name, backbone.source, partial(_use_backbone, backbone)))
    for name in list_tasks():
        if (shipment := task_shipment(name)) is not None:
            findings.append(_check_shipment("task", name, shipment, partial(_use_task, name)))
    return findings


def _check_shipment(kind: str, name: str, shipment: Shipment, use: Callable[[], str]) -> Finding:
    subject = f"{kind} {name}"
    if not is_fetched(shipment):
        advice = f"fetched when needed, or now: consistentee fetch {name}"
        return Finding(subject, "warn", f"not in the cache, {shipment.size / 2**20:.0f} MiB", advice)
    try:
        return Finding(subject, "ok", use())
    except Exception as error:  # whatever is wrong with it, here it is only reported
        folder = cache_dir() / "unpacked" / shipment.name
        remedy = f"delete {folder}, then: consistentee fetch {name}"
        return Finding(subject, "problem", f"cannot be used: {error}", remedy)


def _use_backbone(backbone: Backbone) -> str:
    """Load a backbone, and classify a text or write a token with it."""
    import consistentee as ee

    if backbone.kind == "decoder":
        decoder = ee.MultiExitDecoder.from_backbone(backbone.name)
        written = ee.generate(decoder, ["The council voted on Tuesday to"], ee.NeverExit(), max_new_tokens=1)
        return f"loaded, and wrote {written.texts[0]!r}"
    encoder = ee.MultiExitModel.from_backbone(backbone.name, num_labels=2)
    ee.classify(encoder, ["a film to see twice"], ee.NeverExit())
    return "loaded, and classified a text"


def _use_task(name: str) -> str:
    return f"in the cache, {len(load_task(name).test)} test rows"


def report(findings: list[Finding]) -> "Table":
    """Return the findings as a table for the terminal."""
    from rich.text import Text

    table = plain_table()
    add_columns(table, "", "what", "state", "what would help")
    for finding in findings:
        verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
        table.add_row(verdict, Text(finding.subject), Text(finding.state), Text(finding.remedy))
    return table
