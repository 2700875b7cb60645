"""Tables of results that documents show: `python tests/shown_tables.py`, in the root of the project, writes them.

A comment above a table names a folder of results and the table's title, or a command that prints Markdown.
"""

import re
import shlex
from functools import cache

from documents import ROOT
from typer.testing import CliRunner

from benchmarks.analysis.frames import load_results
from benchmarks.analysis.rendering import to_markdown
from benchmarks.analysis.tables import tables_of
from benchmarks.cli import app

DOCUMENTS_WITH_TABLES = ("README.md", "results/README.md", "docs/paper_tables.md")

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
    """Return what a command prints."""
    return CliRunner().invoke(app, shlex.split(words)).stdout


if __name__ == "__main__":
    for document in DOCUMENTS_WITH_TABLES:
        (ROOT / document).write_text(with_its_tables(document)[1], encoding="utf-8")
