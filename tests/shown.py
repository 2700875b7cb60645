"""Signatures and tables that documents show: ``python tests/shown.py`` in the root of the project writes them.

- An API page names what it documents as ``<!-- ::: package.module.name -->``, which the site replaces by the whole
  entry (see docs/hooks.py). Behind it stand signature and first sentence, for readers of the repository.
- A comment above a table names a folder of results and the table's title, or a command that prints Markdown.
"""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from functools import cache

from documents import ROOT
from typer.testing import CliRunner

from benchmarks.analysis.frames import load_results
from benchmarks.analysis.rendering import to_markdown
from benchmarks.analysis.tables import tables_of
from benchmarks.cli import app

PAGES = sorted(ROOT.glob("docs/api/*.md"))
_ENTRY = re.compile(r"(<!-- ::: ([\w.]+)(.*?)-->\n)(?:<!-- signature -->.*?<!-- end -->\n)?", re.DOTALL)
_MEMBERS = re.compile(r"\bmembers: \[(.*?)\]", re.DOTALL)
Defined = ast.FunctionDef | ast.ClassDef


def with_its_signatures(page: str) -> str:
    """Return the text of a page with the signatures that the sources have today."""
    return _ENTRY.sub(lambda entry: f"{entry[1]}<!-- signature -->\n{shown(*entry.group(2, 3))}<!-- end -->\n", page)


def shown(dotted: str, options: str) -> str:
    """Return signatures and first sentences of a function, a class, a value, or all that a module defines."""
    listed = _MEMBERS.search(options.replace("inherited_members", ""))
    members = set(re.findall(r"\w+", listed[1])) if listed else None
    parts = dotted.split(".")
    size = next(size for size in range(len(parts), 0, -1) if ROOT.joinpath(*parts[:size]).with_suffix(".py").is_file())
    body = ast.parse(ROOT.joinpath(*parts[:size]).with_suffix(".py").read_text(encoding="utf-8")).body
    defined = {node.name: node for node in body if isinstance(node, Defined)}
    public = [ast.literal_eval(node.value) for node in body if ast.unparse(node).startswith("__all__ = ")]
    names = parts[size:] or [name for name in defined if name in (public[0] if public else {name.lstrip("_")})]
    return "\n".join(entry(defined[name], defined, members) if name in defined else value(name, body) for name in names)


def entry(node: Defined, defined: dict[str, Defined], members: set[str] | None) -> str:
    """Return one entry; of a class some ``members``, or all that are public."""
    lines = [signature(node, node.name, fields_of(node, defined))] if isinstance(node, ast.ClassDef) else []
    lines += [signature(node, node.name)] if isinstance(node, ast.FunctionDef) else list(members_of(node, members))
    summary = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", (ast.get_docstring(node) or "").partition("\n\n")[0])
    return f"```text\n{chr(10).join(lines)}\n```\n{textwrap.fill(summary.replace('``', '`'), 120)}\n"


def value(name: str, body: list[ast.stmt]) -> str:
    code = [ast.unparse(node) for node in body]
    place = next(place for place, line in enumerate(code) if re.match(rf"{name}\b.* = ", line))
    summary = str(ast.literal_eval(code[place + 1])).replace("``", "`")
    return f"```text\n{textwrap.shorten(code[place], 120)}\n```\n{textwrap.fill(summary, 120)}\n"


def members_of(node: ast.ClassDef, wanted: set[str] | None) -> Iterator[str]:
    """Yield the signatures of public methods, and the names of properties."""
    for method in (one for one in node.body if isinstance(one, ast.FunctionDef)):
        if method.name.startswith("_") or (wanted and method.name not in wanted):
            continue
        if {ast.unparse(one) for one in method.decorator_list} & {"property", "cached_property"}:
            yield f"    .{method.name}: {plain(method.returns)}"
        else:
            yield signature(method, f"    .{method.name}")


def signature(node: Defined, name: str, arguments: str | None = None) -> str:
    """Return a signature in lines of at most 120 characters."""
    returns = ""
    if isinstance(node, ast.FunctionDef):
        ordered = [*node.args.posonlyargs, *node.args.args]
        if ordered and ordered[0].arg in ("self", "cls"):
            ordered.pop(0)
            node.args.posonlyargs, node.args.args = [], ordered
        arguments, returns = plain(node.args), f" -> {plain(node.returns)}" if node.returns else ""
    indent = " " * (8 + len(name) - len(name.lstrip()))
    return textwrap.fill(f"{name}({arguments}){returns}", 116, subsequent_indent=indent, break_long_words=False)


def fields_of(node: ast.ClassDef, defined: dict[str, Defined]) -> str:
    """Return what makes a class: the arguments of its ``__init__``, or its fields and those of its bases."""
    own = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if own is not None:
        own.args.args.pop(0)
        return plain(own.args)
    return ", ".join(fields_by_name(node, defined).values())


def fields_by_name(node: ast.ClassDef, defined: dict[str, Defined]) -> dict[str, str]:
    bases = [defined[ast.unparse(base)] for base in node.bases if ast.unparse(base) in defined]
    found: dict[str, str] = {}
    for base in bases:
        found |= fields_by_name(base, defined) if isinstance(base, ast.ClassDef) else {}
    own = [one for one in node.body if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)]
    return found | {ast.unparse(one.target): field(one) for one in own if not ast.unparse(one.target).startswith("_")}


def field(node: ast.AnnAssign) -> str:
    default = node.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) in ("Field", "field"):
        found = [one.value for one in default.keywords if one.arg == "default"] or default.args[:1]
        default = found[0] if found else ast.Constant(...)
    return f"{ast.unparse(node.target)}: {plain(node.annotation)}" + (f" = {ast.unparse(default)}" if default else "")


def plain(node: ast.AST | None) -> str:
    """Return code without the quotes of annotations that only type checkers resolve."""
    return re.sub(r"(?<!\w)(['\"])([A-Z][\w.\[\], |]*)\1", r"\2", ast.unparse(node)) if node else ""


DOCUMENTS_WITH_TABLES = (
    "README.md",
    "results/README.md",
    "results/paper_stages.md",
    "docs/index.md",
    "docs/paper_tables.md",
)

_SHOWN = re.compile(r"<!-- (?P<folder>results/\S+): (?P<title>.*?) -->\n(?P<table>(?:\|.*\n)*)")
_PRINTED = re.compile(r"(?P<comment><!-- consistentee (?P<words>.*?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def with_its_tables(document: str) -> tuple[str, str]:
    """Return what a document says, and what it would say with the tables that the records give."""
    said = (ROOT / document).read_text(encoding="utf-8")
    assert _SHOWN.search(said) or _PRINTED.search(said), f"{document} shows no table"

    def table_of(match: re.Match[str]) -> str:
        heading, tables = f"## {match['title']}\n\n", headline(match["folder"])
        assert heading in tables, f"{document}: {match['folder']} has no table {match['title']!r}"
        return match[0].removesuffix(match["table"]) + tables.partition(heading)[2].partition("\n\n")[0] + "\n"

    return said, _PRINTED.sub(lambda m: m["comment"] + printed(m["words"]), _SHOWN.sub(table_of, said))


@cache
def headline(folder: str) -> str:
    """Return the first tables of published results as Markdown."""
    return to_markdown(tables_of(load_results(ROOT / folder)))


def printed(words: str) -> str:
    done = CliRunner().invoke(app, shlex.split(words), catch_exceptions=False)
    assert done.exit_code == 0, f"{words}: {done.output}"
    return done.stdout


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_its_signatures(path.read_text(encoding="utf-8")), encoding="utf-8")
    for document in DOCUMENTS_WITH_TABLES:
        (ROOT / document).write_text(with_its_tables(document)[1], encoding="utf-8")
