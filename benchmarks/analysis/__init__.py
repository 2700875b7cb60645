"""The analysis: from records to tables and figures. Nothing here is measured, and nothing measured is changed.

A results folder is of one kind, classification or generation; each has its own tables and figures.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import Group

    from benchmarks.analysis.panels.results import AnyPanel
    from benchmarks.analysis.tables.text import TextTable
    from benchmarks.analysis.tables.writing import Tables
    from benchmarks.store.folders import Fault

__all__ = [
    "report_files",
    "tables_as_text",
    "terminal_report",
    "write_all_figures",
    "write_all_tables",
    "write_html",
    "write_published_files",
]


def report_files(out_dir: Path, just_computed: "Collection[str]" = ()) -> "Group":
    """Write ``table.md``, ``table.csv`` and the curves as PNG, and return what a run shows in the end.

    That is one screen, see :mod:`benchmarks.analysis.tables.run_screen`; in generation the terminal's tables.

    Args:
        out_dir: a folder that a run has filled.
        just_computed: keys of the cells that it has just computed.

    Raises:
        UserError: the folder holds no results.
    """
    tables = _tables(out_dir)
    panels, faults = tables.load(out_dir, None)
    _write_page_and_numbers(out_dir, tables, panels)
    _draw_curves(out_dir, panels)
    if _holds_generation(out_dir):
        return _for_terminal([tables.terminal(panel) for panel in panels], faults)
    from benchmarks.analysis.tables.run_screen import run_screen

    return run_screen(out_dir, just_computed)


def write_published_files(out_dir: Path) -> list[Path]:
    """Write what lies beside published results, tables, numbers and one figure; return the files.

    The numbers are ``table.csv``, with the full model ``headline.csv``, and of times of generation ``batches.csv``. The
    figure is of points at equal cost; or, in generation and without the full model, of score against cost, in
    generation of the first task. Raises UserError as :func:`report_files` does.
    """
    tables = _tables(out_dir)
    panels, _ = tables.load(out_dir, None)
    written = [*_write_page_and_numbers(out_dir, tables, panels), *_write_beside(out_dir, tables, panels)]
    if _holds_generation(out_dir):
        return [*written, *_draw_curves(out_dir, panels[:1])]
    from benchmarks.analysis.figures.equal_cost import equal_cost_figure
    from benchmarks.analysis.figures.page import save_figure

    headline = equal_cost_figure(panels)
    return [*written, *(save_figure(headline, out_dir, "equal-cost") if headline else _draw_curves(out_dir, panels))]


def _write_beside(out_dir: Path, tables: "Tables", panels: "Sequence[AnyPanel]") -> list[Path]:
    from benchmarks.analysis.tables.text import csv_of
    from benchmarks.store.folders import write_text

    found = {out_dir / name: lines for name, lines_of in tables.beside.items() if (lines := lines_of(panels))}
    for path, lines in found.items():
        write_text(path, csv_of(lines))
    return list(found)


def _write_page_and_numbers(out_dir: Path, tables: "Tables", panels: "Sequence[AnyPanel]") -> list[Path]:
    from benchmarks.analysis.tables.writing import write_panels

    return [write_panels(tables, panels, out_dir, table_format) for table_format in ("md", "csv")]


def _draw_curves(out_dir: Path, panels: "Sequence[AnyPanel]") -> list[Path]:
    if _holds_generation(out_dir):
        from benchmarks.analysis.figures.generation import draw_all

        return draw_all(panels, out_dir)
    from benchmarks.analysis.figures.catalogue import CURVES, save_pages
    from benchmarks.analysis.figures.styles import styles

    return save_pages(CURVES, CURVES.figures(panels, styles(panels)), out_dir)


def terminal_report(out_dir: Path, labels: "Sequence[str] | None" = None, *, published: bool = False) -> "Group":
    """Return the operating points of all (task, backbone) as tables for a terminal; damaged records are named.

    ``published`` shows them beside the figures that papers print instead. ``labels`` and errors are those of
    :func:`benchmarks.analysis.panels.results.load_panels`.
    """
    tables = _tables(out_dir, published=published)
    panels, faults = tables.load(out_dir, labels)
    return _for_terminal([tables.terminal(panel) for panel in panels], faults)


def write_all_tables(out_dir: Path, table_format: str, *, published: bool = False) -> Path:
    """Write the tables of a results folder in one format, and return the file's path.

    ``published`` writes them beside the figures that papers print instead. Raises UserError for an unknown format, and
    as :func:`terminal_report` does.
    """
    from benchmarks.analysis.tables.writing import write_panels

    tables = _tables(out_dir, published=published)
    panels, _ = tables.load(out_dir, None)
    return write_panels(tables, panels, out_dir, table_format)


def tables_as_text(
    out_dir: Path, table_format: str, labels: "Sequence[str] | None" = None, *, published: bool = False
) -> str:
    """Return the tables of some curves as :func:`write_all_tables` writes those of all; nothing is written."""
    from benchmarks.analysis.tables.writing import text_of_panels

    tables = _tables(out_dir, published=published)
    panels, _ = tables.load(out_dir, labels)
    return text_of_panels(tables, panels, table_format)


def write_all_figures(
    out_dir: Path,
    labels: "Sequence[str] | None" = None,
    tasks: "Sequence[str] | None" = None,
    *,
    to: Path | None = None,
    processes: int = 1,
    kinds: "Sequence[str]" = ("png",),
) -> tuple[list[Path], list[str]]:
    """Write every figure of a results folder: the files, and a line for each that cannot be drawn.

    Args:
        out_dir: the results.
        labels, tasks: only these, see :func:`benchmarks.analysis.panels.results.load_panels`.
        to: the folder of the files; by default ``out_dir``, and of some curves or tasks its folder ``selected``: the
            figures of all keep their places.
        processes: they share the figures of classification; those of generation are few.
        kinds: png, pdf, svg.
    """
    if to is None:
        to = out_dir if labels is None and tasks is None else out_dir / "selected"
    if _holds_generation(out_dir):
        from benchmarks.analysis.figures.generation import write_decoding_figures

        return write_decoding_figures(out_dir, labels, tasks, to=to, kinds=kinds), []
    from benchmarks.analysis.figures.catalogue import write_figures

    return write_figures(out_dir, labels, tasks, to=to, processes=processes, kinds=kinds)


def write_html(out_dir: Path) -> Path:
    """Write ``report.html`` into a results folder and return its path. Raises UserError where it holds no results."""
    from benchmarks.analysis.report.contents.instances import CLASSIFICATION
    from benchmarks.analysis.report.contents.texts import GENERATION
    from benchmarks.analysis.report.page import write_report

    return write_report(out_dir, GENERATION if _holds_generation(out_dir) else CLASSIFICATION)


def _holds_generation(out_dir: Path) -> bool:
    from benchmarks.store.stored_results import kind_of_results

    return kind_of_results(out_dir) == "generation"


def _tables(out_dir: Path, *, published: bool = False) -> "Tables":
    """Return the tables of the kind of results that a folder holds."""
    from benchmarks.analysis.tables import operating
    from benchmarks.analysis.tables.generation import decoding
    from benchmarks.analysis.tables.publications import published as beside_papers
    from consistentee.errors import UserError

    if not _holds_generation(out_dir):
        return beside_papers.TABLES if published else operating.TABLES
    if published:
        raise UserError("there are no published figures of generation to compare with")
    return decoding.TABLES


def _for_terminal(tables: "Sequence[TextTable]", faults: "Sequence[Fault]") -> "Group":
    from rich.console import Group
    from rich.text import Text

    from benchmarks.analysis.tables.text import to_rich

    warnings = [Text(f"left out: {fault}", style="yellow") for fault in faults]
    return Group(*map(to_rich, tables), *warnings)
