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
    from benchmarks.analysis.figures import write_figures
    from benchmarks.analysis.tables import headline_csv, page
    from benchmarks.store.hashes import write_text

    texts = {out_dir / "table.md": page(results), out_dir / "headline.csv": headline_csv(results)}
    written = [path for path, text in texts.items() if text]
    for path in written:
        write_text(path, texts[path])
    figures, missing = write_figures(results, out_dir, ["equal-cost"])
    return [*written, *(write_figures(results, out_dir, ["curves"])[0] if missing else figures)]
