"""The screen that a run ends with: its methods at equal cost among the published ones that are comparable.

Comparable are cells of the same task, backbone and seed, trained by the same recipe on the same rows, by the same
versions of training and engine. All else is written to files.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.analysis.equal_cost import comparison_of
from benchmarks.analysis.frames import Results, load_results, merge, protocol
from benchmarks.analysis.provenance import clock_caveats
from benchmarks.analysis.rendering import Column, Table, to_terminal
from benchmarks.analysis.tables import marked, terminal_tables
from benchmarks.specs.schema import canonical_json
from benchmarks.store.records import BaseRecord
from benchmarks.store.stored_results import kind_of_results
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

_REPOSITORY = Path(__file__).parents[2]


def run_screen(out_dir: Path, just_computed: Collection[str], folders: Iterable[Path] | None = None) -> "Group":
    """Compose the last screen of a run; of generation, its tables.

    Args:
        out_dir: the run's folder.
        just_computed: keys of the cells that the run has computed.
        folders: where published results may lie; by default ``results/*`` here and in the package's repository.

    Raises:
        UserError: the folder holds no results.
    """
    from rich.console import Group
    from rich.text import Text

    own = load_results(out_dir)
    if own.kind == "generation":
        return to_terminal(terminal_tables(own), own.faults)
    board, published = compared_with_published(own, published_folders() if folders is None else folders)
    noise = [f"Times are noisy ({subject}): {text}" for subject, text in clock_caveats(own) if subject != "not timed"]
    following = {
        f"consistentee table {out_dir}": "every operating point, with intervals and milliseconds",
        "consistentee new-method mine": "a method of your own, in one file",
    }
    return Group(
        to_terminal([board_table(board, own, just_computed, published)]),
        *(Text(line) for line in noise[:1]),
        *(Text(f"left out: {fault}", style="yellow") for fault in board.faults),
        Text(f"\nAll else is in {out_dir}: table.md, headline.csv, a figure. What next:"),
        *(Text(f"  {command:{max(map(len, following))}}   {what}") for command, what in following.items()),
    )


def published_folders() -> list[Path]:
    """Return the folders of published results, of the working directory and of the package's repository."""
    roots = dict.fromkeys(root.resolve() for root in (Path("results"), _REPOSITORY / "results"))
    places = [place for root in roots if root.is_dir() for place in sorted(root.iterdir()) if place.is_dir()]
    return [place for place in places if any(place.glob("*.parquet"))]


def compared_with_published(own: Results, folders: Iterable[Path]) -> tuple[Results, list[str]]:
    """Merge a run with what is published and comparable; return the names of the folders that were used, too.

    A curve of the run takes the place of a published one.
    """
    wanted = {_identity(record) for record in own.records}
    labels = {(record.task, record.label) for record in own.records}
    found, faults, used = [own], [], []
    for folder in folders:
        try:
            stored = load_results(folder) if kind_of_results(folder) == "classification" else None
        except UserError as error:
            faults.append(str(error))
            continue
        cells = [] if stored is None else [cell for cell in stored.cells if _identity(cell.record) in wanted]
        more = [cell for cell in cells if (cell.record.task, cell.record.label) not in labels]
        if stored is not None and more:
            found.append(replace(stored.with_cells(more), faults=[]))
            used.append(folder.name)
    board = merge(found)
    board.faults += faults
    return board, used


def _identity(record: BaseRecord) -> str:
    return canonical_json([record.task, record.backbone, record.seed, protocol(record)])


def board_table(board: Results, own: Results, just_computed: Collection[str], published: Collection[str]) -> Table:
    """Return points against the full model (or scores without it) at every budget, and the clock at the middle one."""
    comparison, middle = comparison_of(board), comparison_of(board).middle
    found = comparison.headline
    value = "score" if found["points"].isna().all() else "points"
    form = ".1f" if value == "score" else "+.1f"
    measured = {record.label for record in own.records if record.key in just_computed}
    new = measured if set(found["method"]) - measured else set()
    frame = marked(found)
    frame["new"] = frame["method"].map(lambda label: ">" if label in new else "")
    tasks = comparison.compared
    where = " · ".join(tasks[0]) if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
    full = 100 * board.full_scores().get((*tasks[0], -1), float("nan"))
    of_full = f" ({board.tasks.loc[tasks[0], 'metric']} {full:.1f})" if len(tasks) == 1 else ""
    title = f"points against the full model{of_full}" if value == "points" else "score in % (run the full model, too)"
    others = ", ".join(dict.fromkeys(published)) or "earlier runs"
    notes = [
        f"At {middle:g}x 1/{middle:g} of the layers run, on average over rows; 0.0 is as good as the full model. "
        f"Clock: the stock model's time / the method's at {middle:g}x, row by row (batch 1).",
        *(
            [f"> measured just now; the others are stored ({others}), with the clocks of their machines."]
            if new
            else []
        ),
        *(["† even the cheapest knob costs more."] if found["over"].any() else []),
    ]
    lacking = sorted(set(own.labels_to_compare) - set(found["method"]))
    notes += [f"Some task lacks {', '.join(lacking)}."] if lacking else []
    columns = [Column(" ", "new"), Column("method")]
    columns += [Column(f"at {s:g}x", f"{value} {s:g}x", form, mark=f"mark {s:g}x") for s in comparison.speedups]
    if f"speedup_b1 {middle:g}x" in frame:
        columns.append(Column(f"clock at {middle:g}x", f"speedup_b1 {middle:g}x", ".2f"))
    return Table(f"{where}: {title} at equal cost", "run", pd.DataFrame(frame), columns, notes)
