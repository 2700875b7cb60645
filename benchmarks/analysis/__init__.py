"""The analysis: results folders become long DataFrames, and these become tables, figures and the report.

Nothing here is measured, and nothing measured is changed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.analysis.frames import Results

__all__ = ["write_published_files"]


def write_published_files(results: "Results", out_dir: Path) -> list[Path]:
    """Write ``table.md``, ``headline.csv`` and one figure of results into a folder; return the files.

    Without the full model there is no headline, and the figure is of whole curves.
    """
    from benchmarks.analysis.figures import write_headline_figure
    from benchmarks.analysis.tables import write_summary

    return [*write_summary(results, out_dir), *write_headline_figure(results, out_dir)]
