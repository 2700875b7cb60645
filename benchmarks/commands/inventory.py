"""List all known names, and fetch backbones and tasks by name."""

import inspect
from collections.abc import Iterator, Sequence

from rich.table import Table

from benchmarks.specs.suites import expand, list_suites, load_suite
from benchmarks.tasks.loader import list_tasks, spec_of, task_kind, task_shipment
from benchmarks.terminal import filled_table
from consistentee import TokenMethod
from consistentee.backbones.catalog import list_backbones, resolve, resolve_decoder
from consistentee.backbones.wheels import Shipment, fetch, is_fetched
from consistentee.errors import UserError, unknown_name
from consistentee.extras import check_extra
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, available_methods, method_class_of


def inventories(kind: str = "all") -> list[Table]:
    """Return the table of one kind of name, or of all. Raises UserError for an unknown kind."""
    backbones = "Backbones (or any directory or hub id)"
    tables = {  # the rows are generators, so that only those of the wanted tables are made
        "methods": ("Methods", "name kind knob regression parameters source", _methods()),
        "tasks": ("Tasks", "name kind description rows", _tasks()),
        "backbones": (backbones, "name kind layers width pooling licence source", _backbones()),
        "suites": ("Suites (hours: on 2 CPU cores)", "name description cells data hours", _suites()),
        "papers": ("Tables of papers", "name description methods tasks source", _papers()),
    }
    if kind != "all" and kind not in tables:
        raise unknown_name("list", kind, tables)
    wanted = tables.values() if kind == "all" else [tables[kind]]
    return [filled_table(headings.split(), [], rows, title) for title, headings, rows in wanted]


def _methods() -> Iterator[Sequence[object]]:
    for name in (*sorted(available_methods()), *sorted(available_methods(TOKEN_ENTRY_POINT_GROUP))):
        try:
            method = method_class_of(name)
        except UserError as error:
            yield name, "unavailable", "", "", "", error
            continue
        kind = "generation" if issubclass(method, TokenMethod) else "classification"
        regression = "yes" if method.supports_regression else "no"
        parameters = inspect.signature(method).parameters.values()
        defaults = ", ".join(str(one.replace(annotation=one.empty)) for one in parameters)
        yield name, kind, method.knob.name, regression, defaults, method.paper


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
    from benchmarks.commands.reproduce import list_papers, load_paper

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
