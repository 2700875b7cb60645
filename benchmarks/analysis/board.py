"""The files that publications and runs have of their results, and the screen that a run ends with."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.analysis.comparison import comparison_of
from benchmarks.analysis.figures import write_figures
from benchmarks.analysis.frames import Results, load_results, published_folders, with_published
from benchmarks.analysis.provenance import check_times
from benchmarks.analysis.rendering import to_terminal
from benchmarks.analysis.tables import headline_csv, headline_table, page, tables_of
from benchmarks.store.hashes import write_text

if TYPE_CHECKING:
    from rich.console import Group


def write_published_files(results: Results, out_dir: Path) -> list[Path]:
    """Write ``table.md``, ``headline.csv`` and one figure of results into a folder; return the files.

    Without the full model there is no headline, and the figure is of whole curves.
    """
    texts = {out_dir / "table.md": page(results), out_dir / "headline.csv": headline_csv(results)}
    written = [path for path, text in texts.items() if text]
    for path in written:
        write_text(path, texts[path])
    figures, missing = write_figures(results, out_dir, ["equal-cost"])
    return [*written, *(write_figures(results, out_dir, ["curves"])[0] if missing else figures)]


def report_files(out_dir: Path) -> "Group":
    """Write the files of a run, and show its methods at equal cost among the published ones that are comparable."""
    from rich.console import Group
    from rich.text import Text

    own = load_results(out_dir)
    written = ", ".join(path.name for path in write_published_files(own, out_dir))
    board = with_published(own, published_folders())
    table, clock = headline_table(board), f"clock {comparison_of(board).middle:g}x b1"
    if table is not None:
        table = table.only([heading for heading in table.cells if heading.startswith("at ") or heading == clock])
    return Group(
        to_terminal([table] if table else tables_of(own), board.faults),
        *map(Text, check_times(own)),
        Text(f"\nAlso written to {out_dir}: {written}. Next:"),
        Text(f"  consistentee table {out_dir}   all columns, scores and tests"),
        Text("  consistentee new-method mine   a method of your own, in one file"),
    )
