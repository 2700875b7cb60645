"""Tables as files: one writer for every kind of results and every format."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.rows.frame import long_frame
from benchmarks.analysis.tables.provenance import machines_table
from benchmarks.analysis.tables.text import TextTable, csv_of, to_latex, to_markdown
from benchmarks.store.folders import Fault, write_text
from consistentee.errors import unknown_name

MOST_LINES = 120
"""Of ``table.md``: a page that people read."""


_LINES_AFTER = 3


@dataclass(frozen=True)
class Tables:
    """The tables of a kind of results.

    Attributes:
        name: of the files, without what the format adds.
        load: (folder, labels or None) -> panels and faults; raises UserError, see ``load_panels``.
        terminal: the table of one panel on a terminal.
        first: what a reader needs most, over all panels, the most important table first.
        every: all tables.
        lines: what a CSV file holds.
        beside: what other CSV files hold that are published, by name; one that would hold nothing is not written.
        most_lines: of the Markdown page; None: every table is on it.
    """

    name: str
    load: Callable[[Path, Sequence[str] | None], tuple[list[AnyPanel], list[Fault]]]
    terminal: Callable[[AnyPanel], TextTable]
    first: Callable[[Sequence[AnyPanel]], Iterable[TextTable]]
    every: Callable[[Sequence[AnyPanel]], list[TextTable]]
    lines: Callable[[Sequence[AnyPanel]], list[dict[str, object]]]
    beside: Mapping[str, Callable[[Sequence[AnyPanel]], list[dict[str, object]]]]
    most_lines: int | None = MOST_LINES


def page(tables: Tables, panels: Sequence[AnyPanel]) -> str:
    """Return the Markdown page: of the first tables as many as fit on it, and where the numbers come from."""
    if tables.most_lines is None:
        return to_markdown(tables.every(panels))
    provenance = to_markdown([machines_table([cell.record for panel in panels for cell in panel.cells])])
    left = tables.most_lines - len(provenance.splitlines()) - _LINES_AFTER
    shown = []
    for table in tables.first(panels):
        text = to_markdown([table])
        left -= len(text.splitlines()) + 1
        if left < 0:
            break
        shown.append(text)
    rest = "All tables: `consistentee table DIR --format all`; all numbers: `table.csv` and `--format long`.\n"
    return "\n".join([*shown, provenance, rest])


_FORMATS: dict[str, tuple[str, Callable[[Tables, Sequence[AnyPanel]], str]]] = {
    "md": (".md", page),
    "csv": (".csv", lambda tables, panels: csv_of(tables.lines(panels))),
    "latex": (".tex", lambda tables, panels: to_latex(tables.every(panels))),
    "all": ("-all.md", lambda tables, panels: to_markdown(tables.every(panels))),
    "long": ("-long.csv", lambda _, panels: str(long_frame(panels).to_csv(index=False, lineterminator="\n"))),
}


def write_panels(tables: Tables, panels: Sequence[AnyPanel], out_dir: Path, table_format: str) -> Path:
    """Write the tables of some panels into a folder, and return the file. Raises UserError for an unknown format."""
    text = text_of_panels(tables, panels, table_format)
    path = out_dir / f"{tables.name}{_FORMATS[table_format][0]}"
    write_text(path, text)
    return path


def text_of_panels(tables: Tables, panels: Sequence[AnyPanel], table_format: str) -> str:
    """Return what :func:`write_panels` writes. Raises UserError for an unknown format."""
    if table_format not in _FORMATS:
        raise unknown_name("table format", table_format, _FORMATS)
    return _FORMATS[table_format][1](tables, panels)
