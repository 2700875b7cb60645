"""What can be named: methods, tasks, backbones and suites; and fetching them by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.harness.spec import list_suites, load_suite
from benchmarks.tasks.loader import list_tasks, task_shipment
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.backbones.catalog import list_backbones, resolve
from consistentee.backbones.wheels import Shipment, fetch, is_fetched
from consistentee.errors import UserError, unknown_name
from consistentee.method import available_methods, method_class_of

if TYPE_CHECKING:
    from rich.table import Table


def inventories(kind: str = "all") -> list["Table"]:
    """Return the table of one kind of name, or of all four. Raises UserError for an unknown kind."""
    if kind == "all":
        return [build() for build in _INVENTORIES.values()]
    if kind not in _INVENTORIES:
        raise unknown_name("list", kind, _INVENTORIES)
    return [_INVENTORIES[kind]()]


def fetch_by_name(name: str) -> str:
    """Fetch a backbone, or a task that travels in a package, and say where it lies.

    Raises UserError for an unknown name, and for a task that no package ships.
    """
    tasks = list_tasks()
    if name in tasks:
        shipment = task_shipment(name)
        if shipment is None:
            raise UserError(f"task {name!r} is shipped in no package; give its files with --data DIR when you run it")
        return str(fetch(shipment))
    if name not in list_backbones() and "/" not in name:
        raise unknown_name("backbone or task", name, [*list_backbones(), *tasks])
    return resolve(name).path


def _table(title: str, *headings: str) -> "Table":
    table = plain_table(title)
    add_columns(table, *headings)
    return table


def _methods() -> "Table":
    table = _table("Methods", "name", "knob", "regression", "source")
    for name in sorted(available_methods()):
        try:
            method = method_class_of(name)
        except UserError as error:
            add_row(table, name, "unavailable", "", error)
            continue
        add_row(table, name, method.knob.name, "yes" if method.supports_regression else "no", method.paper)
    return table


def _tasks() -> "Table":
    table = _table("Tasks", "name", "what it is", "rows from")
    for name, description in list_tasks().items():
        shipment = task_shipment(name)
        add_row(table, name, description, "--data or the hub" if shipment is None else f"package, {_cached(shipment)}")
    return table


def _backbones() -> "Table":
    table = _table(
        "Backbones (any directory or hub id works too)", "name", "layers", "width", "pooling", "licence", "from"
    )
    for name, backbone in list_backbones().items():
        pooling = f"{backbone.pooling} + pooler" if backbone.pooler else backbone.pooling
        source = f"package, {_cached(backbone.source)}" if isinstance(backbone.source, Shipment) else "hub"
        add_row(table, name, backbone.layers, backbone.width, pooling, backbone.licence, source)
    return table


def _cached(shipment: Shipment) -> str:
    return "cached" if is_fetched(shipment) else f"{shipment.size / 2**20:.0f} MiB to fetch"


def _suites() -> "Table":
    table = _table("Suites", "name", "what it runs", "cost")
    for name in list_suites():
        suite = load_suite(name)
        add_row(table, name, suite.description, suite.cost)
    return table


_INVENTORIES: dict[str, Callable[[], "Table"]] = {
    "methods": _methods,
    "tasks": _tasks,
    "backbones": _backbones,
    "suites": _suites,
}
