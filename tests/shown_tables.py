"""Tables of results that documents show, below folder and title: `python tests/shown_tables.py` writes them."""

import re
from functools import cache

from documents import ROOT

from benchmarks.analysis.frames import load_results
from benchmarks.analysis.rendering import to_markdown
from benchmarks.analysis.tables import first_tables

FIRST_ROWS = {"README.md": 10, "results/README.md": None}
"""Documents, and how many rows they show of each table."""

_SHOWN = re.compile(r"<!-- (?P<folder>results/\S+): (?P<title>.*?) -->\n(?P<table>(?:\|.*\n)*)")


def with_its_tables(document: str) -> tuple[str, str]:
    """Return what a document says, and what it would say with the tables that the records give."""
    said = (ROOT / document).read_text(encoding="utf-8")
    assert _SHOWN.search(said), f"{document} shows no table"

    def table_of(match: re.Match[str]) -> str:
        heading = f"## {match['title']}\n\n"
        assert heading in headline(match["folder"]), f"{document}: {match['folder']} has no table {match['title']!r}"
        table = headline(match["folder"]).partition(heading)[2].partition("\n\n")[0].splitlines()
        rows = FIRST_ROWS[document]
        shown = table if rows is None else table[: 2 + rows]
        return match[0].removesuffix(match["table"]) + "\n".join(shown) + "\n"

    return said, _SHOWN.sub(table_of, said)


@cache
def headline(folder: str) -> str:
    """Return the headline tables of published results as Markdown."""
    return to_markdown(first_tables(load_results(ROOT / folder)))


if __name__ == "__main__":
    for document in FIRST_ROWS:
        (ROOT / document).write_text(with_its_tables(document)[1], encoding="utf-8")
