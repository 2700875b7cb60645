"""How tables look on a terminal: the same everywhere. Text is never read as markup, wherever it came from."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistentee.errors import printable

RESULTS_WIDTH = 140
"""Columns that a table of results needs."""

_LONGEST_CELL = 500
"""Characters of a cell, such as a class name, before it is shortened."""


def plain_table(title: str = "", caption: str = "") -> Table:
    """Return an empty table with one line under its headings."""
    return Table(
        title=plain_text(title, style="bold") if title else None,
        caption=plain_text(caption, style="dim") if caption else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def add_columns(table: Table, *headings: str, numbers: bool = False) -> None:
    """Add columns of words, or of numbers: numbers are set to the right and never broken."""
    for heading in headings:
        if numbers:
            # A heading on two lines keeps the column nearly as narrow as its numbers.
            table.add_column(Text(_on_two_lines(heading)), justify="right", no_wrap=True)
        else:
            table.add_column(Text(heading), overflow="fold")


def _on_two_lines(heading: str) -> str:
    mark = " " if " " in heading else "-"
    places = [i + 1 for i, character in enumerate(heading) if character == mark]
    if not places:
        return heading
    middle = min(places, key=lambda i: abs(2 * i - 1 - len(heading)))
    return f"{heading[:middle].rstrip()}\n{heading[middle:]}"


def add_row(table: Table, *cells: object) -> None:
    """Add a row of plain text; cells that have a style keep it."""
    table.add_row(*(c if isinstance(c, Text) else plain_text(str(c), longest=_LONGEST_CELL) for c in cells))


def filled_table(
    words: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", caption: str = ""
) -> Table:
    """Return a table of ``rows``, whose cells stand first below headings of ``words`` and then of ``numbers``."""
    table = plain_table(title, caption)
    add_columns(table, *words)
    add_columns(table, *numbers, numbers=True)
    for row in rows:
        add_row(table, *row)
    return table


def plain_text(text: str, style: str = "", longest: int = 10_000) -> Text:
    """Return text that a terminal shows as it is: control characters are escaped, and it is shortened."""
    return Text(printable(text, longest), style=style)


def print_line(console: Console, line: str) -> None:
    """Print a line as it is, however long it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def output_console(at_least: int = 0) -> Console:
    """Return the console of standard output; a file or a pipe has no width, and gets whole lines.

    Args:
        at_least: columns below which a table is unreadable; a narrower terminal wraps its lines instead.
    """
    console = Console()
    if not console.is_terminal:
        return Console(width=200)
    return console if console.width >= at_least else Console(width=at_least)
