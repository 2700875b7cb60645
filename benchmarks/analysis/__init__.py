"""The analysis: from records to tables and figures. Nothing here is measured, and nothing measured is changed."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Group

    from benchmarks.analysis.results import Panel
    from benchmarks.harness.storage import Fault

__all__ = ["report_files", "terminal_report"]


def report_files(out_dir: Path) -> "Group":
    """Write ``table.md``, ``table.csv``, ``curves.png`` and ``curves.pdf`` and return the terminal's tables.

    Args:
        out_dir: a folder that a run has filled.

    Raises:
        UserError: the folder holds no results.
    """
    from benchmarks.analysis.plots import figure, save_figure
    from benchmarks.analysis.results import load_panels
    from benchmarks.analysis.tables import FORMATS
    from benchmarks.harness.storage import write_text

    panels, faults = load_panels(out_dir)
    for suffix in ("md", "csv"):
        write_text(out_dir / f"table.{suffix}", FORMATS[suffix](panels))
    save_figure(figure(panels), out_dir)
    return _terminal_tables(panels, faults)


def terminal_report(out_dir: Path, labels: "Sequence[str] | None" = None, *, published: bool = False) -> "Group":
    """Return the operating points of all (task, backbone) as tables for a terminal; damaged records are named.

    ``published`` shows them beside the figures that papers print instead. ``labels`` and errors are those of
    :func:`benchmarks.analysis.results.load_panels`.
    """
    from benchmarks.analysis.results import load_panels

    return _terminal_tables(*load_panels(out_dir, labels), published=published)


def _terminal_tables(panels: "list[Panel]", faults: "list[Fault]", *, published: bool = False) -> "Group":
    from rich.console import Group
    from rich.text import Text

    from benchmarks.analysis.published import published_table
    from benchmarks.analysis.tables import operating_table
    from benchmarks.analysis.text_tables import to_rich

    tables = [published_table(panel) if published else operating_table(panel, compact=True) for panel in panels]
    warnings = [Text(f"left out: {fault}", style="yellow") for fault in faults]
    return Group(*map(to_rich, tables), *warnings)
