"""The analysis: results folders become three DataFrames, and these become tables, figures and the report.

Nothing here is measured, and nothing measured is changed.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["report_files", "write_published_files"]


def report_files(out_dir: Path, just_computed: Collection[str] = ()) -> "Group":
    """Write the summary of a run, see :func:`write_published_files`, and return the screen that it ends with.

    ``just_computed`` are keys of cells. Raises UserError if the folder holds no results.
    """
    from benchmarks.analysis.run_screen import run_screen

    write_published_files(out_dir)
    return run_screen(out_dir, just_computed)


def write_published_files(out_dir: Path) -> list[Path]:
    """Write ``table.md``, ``headline.csv`` and one figure into a results folder; return the files.

    Without the full model there is no headline, and the figure is of whole curves. Raises UserError as
    :func:`report_files` does.
    """
    from benchmarks.analysis.figures import write_headline_figure
    from benchmarks.analysis.frames import load_results
    from benchmarks.analysis.tables import write_summary

    results = load_results(out_dir)
    return [*write_summary(results, out_dir), *write_headline_figure(results, out_dir)]
