"""Tables as text, and their forms: Markdown, LaTeX, CSV, and for the terminal."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.terminal import add_columns, add_row, plain_table

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "n/a"

_LATEX_SPECIAL = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": "$-$",
    "<": "$<$",  # of these three the default font has other signs in their places
    ">": "$>$",
    "|": "$|$",
}


@dataclass(frozen=True)
class TextTable:
    """A table as text: a title, headings, cells, the notes under it, and which columns are words."""

    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def p_value(value: float) -> str:
    """Write a p-value."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def to_markdown(tables: Sequence[TextTable]) -> str:
    """Write tables as Markdown."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: TextTable) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escape_markdown(cell) for cell in cells) + " |"

    rule = ["---" if heading in table.words else "---:" for heading in table.headings]
    lines = [f"## {_escape_markdown(table.title)}", "", line(table.headings), "| " + " | ".join(rule) + " |"]
    lines += [line(row) for row in table.cells]
    lines += ["", *(f"- {_escape_markdown(note)}" for note in table.notes), ""]
    return "\n".join(lines)


def _escape_markdown(text: str) -> str:
    # Names and notes may come from a user's files: they must stay text.
    return re.sub(r"([\\|`*_])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def csv_of(records: Sequence[dict[str, object]], fields: Sequence[str] = ()) -> str:
    """Write records as CSV, one line each; a field that some lack is empty there. ``fields``: the first columns."""
    fields = list(dict.fromkeys([*fields, *(name for record in records for name in record)]))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def to_latex(tables: Sequence[TextTable]) -> str:
    """Write tables as LaTeX, in booktabs style."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex(table) for table in tables)


def _latex(table: TextTable) -> str:
    alignment = "".join("l" if heading in table.words else "r" for heading in table.headings)
    lines = ["\\begin{table}", "\\centering\\small", f"\\caption{{{escape_latex(table.title)}}}"]
    lines += [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule"]
    lines += [" & ".join(map(escape_latex, table.headings)) + " \\\\", "\\midrule"]
    lines += [" & ".join(map(escape_latex, row)) + " \\\\" for row in table.cells]
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, "\\end{table}", ""])


def escape_latex(text: str) -> str:
    """Escape the characters that LaTeX would read as commands, and write the signs of tables in its own words."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)


def to_rich(table: TextTable) -> "Table":
    """Return a table for the terminal."""
    shown = plain_table(table.title, "\n".join(table.notes))
    for heading in table.headings:
        add_columns(shown, heading, numbers=heading not in table.words)
    for row in table.cells:
        add_row(shown, *row)
    return shown
