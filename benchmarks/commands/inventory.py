"""List all known names, fetch backbones and tasks by name, and check this machine before a run."""

import inspect
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from tempfile import TemporaryFile
from typing import NamedTuple

import psutil
import torch
from rich.table import Table

from benchmarks.commands.own_methods import find_methods
from benchmarks.measure.environment import usable_cores
from benchmarks.specs.suites import expand, list_suites, load_suite
from benchmarks.tasks.loader import list_tasks, spec_of, task_kind, task_shipment
from benchmarks.terminal import filled_table
from consistentee import TokenMethod
from consistentee.backbones.catalog import list_backbones, resolve, resolve_decoder
from consistentee.backbones.hub import HubError, ask
from consistentee.backbones.wheels import Shipment, fetch, is_fetched
from consistentee.errors import UserError, unknown_name
from consistentee.extras import check_extra
from consistentee.files import cache_dir
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, AnyMethod, available_methods, method_class_of
from consistentee.models.base import chosen_device
from consistentee.training.loop import precision_used


def inventories(kind: str = "all", places: Sequence[str] = ()) -> list[Table]:
    """Return the table of one kind of name, or of all; ``places`` are methods, files and folders instead of all.

    Raises UserError for an unknown kind.
    """
    backbones = "Backbones (or any directory or hub id)"
    tables = {  # the rows are generators, so that only those of the wanted tables are made
        "methods": ("Methods", "name kind knob regression parameters source", _methods(places)),
        "tasks": ("Tasks", "name kind description rows", _tasks()),
        "backbones": (backbones, "name kind layers width pooling licence source", _backbones()),
        "suites": ("Suites (hours: on 2 CPU cores)", "name description cells data hours", _suites()),
        "papers": ("Tables of papers", "name description methods tasks source", _papers()),
    }
    if kind != "all" and kind not in tables:
        raise unknown_name("list", kind, tables)
    wanted = tables.values() if kind == "all" else [tables[kind]]
    return [filled_table(headings.split(), [], rows, title) for title, headings, rows in wanted]


def _methods(places: Sequence[str]) -> Iterator[Sequence[object]]:
    for name, method in _listed_methods(places):
        if isinstance(method, UserError):
            yield name, "unavailable", "", "", "", method
        else:
            kind = "generation" if issubclass(method, TokenMethod) else "classification"
            regression = "yes" if method.supports_regression else "no"
            parameters = inspect.signature(method).parameters.values()
            defaults = ", ".join(str(one.replace(annotation=one.empty)) for one in parameters)
            yield name, kind, method.knob.name, regression, defaults, method.paper


def _listed_methods(places: Sequence[str]) -> Iterator[tuple[str, type[AnyMethod] | UserError]]:
    """Yield the methods at ``places``, or those of classification and of generation; or their faults."""
    names = [] if places else [*sorted(available_methods()), *sorted(available_methods(TOKEN_ENTRY_POINT_GROUP))]
    for place in places:
        try:
            names += find_methods([place])
        except UserError as error:
            yield place, error
    for name in names:
        try:
            yield name, method_class_of(name)
        except UserError as error:
            yield name, error


def _tasks() -> Iterator[Sequence[object]]:
    for name, description in list_tasks().items():
        elsewhere = "--data or the hub" if spec_of(name)[0].hub else "--data"
        yield name, task_kind(name), description, _source(task_shipment(name), elsewhere)


def _backbones() -> Iterator[Sequence[object]]:
    for name, backbone in list_backbones().items():
        pooling = f"{backbone.pooling} + pooler" if backbone.pooler else backbone.pooling or ""
        source = _source(backbone.source, "hub")
        yield name, backbone.kind, backbone.layers, backbone.width, pooling, backbone.licence, source


def _source(shipment: Shipment | str | None, elsewhere: str) -> str:
    if not isinstance(shipment, Shipment):
        return elsewhere
    return "package, cached" if is_fetched(shipment) else f"package, {shipment.size / 2**20:.0f} MiB to fetch"


def _suites() -> Iterator[Sequence[object]]:
    for name in list_suites():
        suite = load_suite(name)
        data = "in packages" if all(map(task_shipment, suite.tasks)) else "--data"
        hours, cells = suite.cost.get("hours", ""), suite.cost.get("of_cells")
        hours = f"{hours:g} for {cells:g} cells" if cells else hours
        yield name, suite.description, len(expand(suite)), data, hours


def _papers() -> Iterator[Sequence[object]]:
    try:
        check_extra("bench", "`consistentee reproduce`")
    except UserError as error:
        yield "unavailable", error, "", "", ""
        return
    from benchmarks.papers.comparison import list_papers, load_paper

    for name in list_papers():
        table = load_paper(name)
        methods = dict.fromkeys(method.printed for method in table.methods)
        yield name, table.title, ", ".join(methods), ", ".join(column.printed for column in table.columns), table.table


def fetch_by_name(name: str) -> str:
    """Fetch a backbone or a task, and return its folder. Raises UserError for a name that cannot be fetched."""
    tasks = list_tasks()
    if name in tasks:
        shipment = task_shipment(name)
        if shipment is None:
            raise UserError(f"task {name!r} is shipped in no package; give its files with --data DIR when you run it")
        return str(fetch(shipment))
    known = list_backbones().get(name)
    if known is None and "/" not in name:
        raise unknown_name("backbone or task", name, [*list_backbones(), *tasks])
    return resolve_decoder(name) if known is not None and known.kind == "decoder" else resolve(name).path


# ---------------------------------------------------------------------------------------------- this machine


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
