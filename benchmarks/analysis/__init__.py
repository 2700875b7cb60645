"""The analysis: results folders become three DataFrames, and these become tables, figures and the report.

Nothing here is measured, and nothing measured is changed.
"""

from pathlib import Path

__all__ = ["write_published_files"]


def write_published_files(out_dir: Path) -> list[Path]:
    """Write ``table.md``, ``headline.csv`` and one figure into a results folder; return the files.

    Without the full model there is no headline, and the figure is of whole curves. Raises UserError if the folder
    holds no results.
    """
    from benchmarks.analysis.figures import write_headline_figure
    from benchmarks.analysis.frames import load_results
    from benchmarks.analysis.tables import write_summary

    results = load_results(out_dir)
    return [*write_summary(results, out_dir), *write_headline_figure(results, out_dir)]
