"""List methods, tasks, backbones and suites, describe methods on cards, and fetch backbones and tasks by name."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.commands.own_methods import find_methods
from benchmarks.specs.suites import expand, list_suites, load_suite
from benchmarks.tasks.loader import is_on_hub, list_tasks, task_kind, task_shipment
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.backbones.catalog import list_backbones, resolve, resolve_decoder
from consistentee.backbones.wheels import Shipment, fetch, is_fetched
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import (
    TOKEN_ENTRY_POINT_GROUP,
    AnyMethod,
    Method,
    available_methods,
    method_class_of,
)
from consistentee.methods.token_methods import TokenMethod

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_FILLED = {"propagate": "propagated", "exact": "computed exactly, later"}


def inventories(kind: str = "all", places: Sequence[str] = (), *, detail: bool = False) -> list["Table"]:
    """Return the table of one kind of name, or of all four. Raises UserError for an unknown kind.

    Args:
        kind: ``methods``, ``tasks``, ``backbones``, ``suites`` or ``all``.
        places: files and folders whose methods are listed with the registered ones.
        detail: of suites, everything that is known of what a run takes.
    """
    builders: dict[str, Callable[[], Table]] = {
        "methods": partial(_methods, places),
        "tasks": _tasks,
        "backbones": _backbones,
        "suites": partial(_suites, detail=detail),
    }
    if kind != "all" and kind not in builders:
        raise unknown_name("list", kind, builders)
    return [build() for name, build in builders.items() if kind in (name, "all")]


class ListedMethod(NamedTuple):
    """A method that can be named: its class, or the reason why it is not available."""

    name: str
    method: type[AnyMethod] | None
    reason: str = ""


def listed_methods(places: Sequence[str] = ()) -> list[ListedMethod]:
    """Return the methods of classification, those of files and folders, and those of generation.

    Each that is broken comes with the reason.
    """
    listed = [_listed(name) for name in sorted(available_methods())]
    for place in places:
        try:
            found = find_methods([place])
        except UserError as error:
            listed.append(ListedMethod(place, None, str(error)))
            continue
        listed += [_listed(name) for name in found.names if name not in available_methods()]
        listed += [ListedMethod(file, None, reason) for file, reason in found.unavailable]
    return listed + [_listed(name) for name in sorted(available_methods(TOKEN_ENTRY_POINT_GROUP))]


def _listed(name: str) -> ListedMethod:
    try:
        return ListedMethod(name, method_class_of(name))
    except UserError as error:
        return ListedMethod(name, None, str(error))


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
    known = list_backbones().get(name)
    if known is not None and known.kind == "decoder":
        return resolve_decoder(name)
    return resolve(name).path


def _methods(places: Sequence[str]) -> "Table":
    table = plain_table("Methods")
    add_columns(table, "name", "kind", "knob", "regression", "source")
    for listed in listed_methods(places):
        if listed.method is None:
            add_row(table, listed.name, "unavailable", "", "", listed.reason)
        else:
            regression = "yes" if listed.method.supports_regression else "no"
            kind = "generation" if issubclass(listed.method, TokenMethod) else "classification"
            add_row(table, listed.name, kind, listed.method.knob.name, regression, listed.method.paper)
    return table


def _tasks() -> "Table":
    table = plain_table("Tasks")
    add_columns(table, "name", "kind", "what it is", "rows from")
    for name, description in list_tasks().items():
        shipment = task_shipment(name)
        elsewhere = "--data or the hub" if is_on_hub(name) else "--data"
        source = elsewhere if shipment is None else f"package, {_cached(shipment)}"
        add_row(table, name, task_kind(name), description, source)
    return table


def _backbones() -> "Table":
    table = plain_table("Backbones (any directory or hub id works too)")
    add_columns(table, "name", "kind", "layers", "width", "pooling", "licence", "from")
    for name, backbone in list_backbones().items():
        pooling = f"{backbone.pooling} + pooler" if backbone.pooler else backbone.pooling or ""
        source = f"package, {_cached(backbone.source)}" if isinstance(backbone.source, Shipment) else "hub"
        add_row(table, name, backbone.kind, backbone.layers, backbone.width, pooling, backbone.licence, source)
    return table


def _cached(shipment: Shipment) -> str:
    return "cached" if is_fetched(shipment) else f"{shipment.size / 2**20:.0f} MiB to fetch"


def _suites(*, detail: bool) -> "Table":
    """Return a line a suite, however narrow the terminal is; with ``detail`` all of it."""
    table = plain_table("Suites (hours: on 2 CPU cores)")
    add_columns(table, "name", "what it runs", "cells", "data", "cost" if detail else "hours")
    for column in table.columns:
        column.no_wrap, column.overflow = not detail, "fold" if detail else "ellipsis"
    for name in list_suites():
        suite = load_suite(name)
        cost = "; ".join(f"{part.replace('_', ' ')}: {value}" for part, value in suite.cost.items())
        data = "in packages" if all(map(task_shipment, suite.tasks)) else "--data"
        hours = suite.cost.get("hours", "")
        add_row(table, name, suite.description, len(expand(suite)), data, cost if detail else hours)
    return table


def write_cards(places: Sequence[str], console: "Console") -> None:
    """Print a card for every method that can be named; ``places`` are files and folders with more methods."""
    for listed in listed_methods(places):
        if listed.method is None:
            console.print(f"{listed.name}: unavailable: {listed.reason}\n", markup=False, highlight=False)
        else:
            console.print(card_table(listed.name, method_card(listed.method)))


def method_card(method: type[AnyMethod]) -> dict[str, str]:
    """Describe a method: heading -> text, without what its class does not define."""
    year = _YEAR.search(method.paper)
    knob, values = method.knob, method.knob.values
    usual = f"{values[0]:g} to {values[-1]:g} ({len(values)} values)" if len(values) > 1 else f"{values[0]:g}"
    by_model = "" if method.knob_values is Method.knob_values else ", adapted to the model"
    card = {
        "what": _summary(method, Method),
        "paper": method.paper,
        "year": year.group() if year else "",
        "version": str(method.version),
        "training": _summary(method.fit, Method.fit),
        "rule": _summary(method.rule, Method.rule),
        "knob": f"{knob.name}, {usual}{by_model}",
        "parameters": ", ".join(f"{field.name}={_default(field)}" for field in dataclasses.fields(method)),
        "supports": _supports(method),
    }
    return {heading: text for heading, text in card.items() if text}


def _summary(described: object, inherited: object) -> str:
    """Return the first line of a docstring; nothing for one that repeats what every method does."""
    text = described.__doc__ or ""
    return "" if text == inherited.__doc__ else inspect.cleandoc(text).partition("\n")[0].replace("``", "")


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(required)" if field.default is dataclasses.MISSING else repr(field.default)


def _supports(method: type[AnyMethod]) -> str:
    if not issubclass(method, TokenMethod):
        regression = ", regression" if method.supports_regression else ""
        return f"classification{regression}" + ("; replayed on a trace only" if method.replay_only else "")
    if method.generate is not TokenMethod.generate:
        return "generation, with a decoding loop of its own"
    if method.model_at is not TokenMethod.model_at:
        return "generation, with a decoder of its own for every value of the knob"
    return f"generation; keys and values of skipped layers are {_FILLED[method.kv]}"


def card_table(name: str, card: dict[str, str]) -> "Table":
    """Return a card as a table for a terminal."""
    table = plain_table(name)
    table.show_header = False
    add_columns(table, "", "")
    for heading, text in card.items():
        add_row(table, heading, text)
    return table
