"""The screen that a run ends with: its methods at equal cost among the published ones that are comparable."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.analysis import write_published_files
from benchmarks.analysis.frames import load_results, published_folders, with_published
from benchmarks.analysis.provenance import clock_caveats
from benchmarks.analysis.rendering import to_terminal
from benchmarks.analysis.tables import headline_table, tables_of

if TYPE_CHECKING:
    from rich.console import Group


def report_files(out_dir: Path, folders: Iterable[Path] | None = None) -> "Group":
    """Write the summary of a run, see :func:`write_published_files`, and compose its last screen.

    ``folders`` may hold published results, by default those of :func:`published_folders`.
    """
    from rich.console import Group
    from rich.text import Text

    own = load_results(out_dir)
    written = ", ".join(path.name for path in write_published_files(own, out_dir))
    board = with_published(own, published_folders() if folders is None else folders)
    table, clock = headline_table(board), f"clock {board.speedups[len(board.speedups) // 2]:g}x b1"
    if table is not None:
        table = table.only([heading for heading in table.cells if heading.startswith("at ") or heading == clock])
    noise = [f"Times are noisy ({subject}): {text}" for subject, text in clock_caveats(own) if subject != "not timed"]
    return Group(
        to_terminal([table] if table else tables_of(own), board.faults),
        *(Text(line) for line in noise[:1]),
        Text(f"\nAlso written to {out_dir}: {written}. Next:"),
        Text(f"  consistentee table {out_dir}   all columns, scores and tests"),
        Text("  consistentee new-method mine   a method of your own, in one file"),
    )
