"""The screen that a run ends with: its methods at equal cost among the published ones that are comparable.

Comparable are cells of the same task, backbone and seed, trained by the same recipe on the same rows, by the same
versions of training and engine. All else is written to files.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis import write_published_files
from benchmarks.analysis.equal_cost import EqualCost, comparison_of
from benchmarks.analysis.frames import FULL, Results, load_results, merge, protocol
from benchmarks.analysis.provenance import clock_caveats
from benchmarks.analysis.rendering import INTERVALS_NOTE, Column, Table, note_on_marks, to_terminal
from benchmarks.analysis.tables import headline_table, terminal_tables
from benchmarks.specs.base import BaseCellSpec
from benchmarks.specs.knob_choice import Reach
from benchmarks.specs.schema import canonical_json
from benchmarks.specs.targets import SPEEDUPS
from benchmarks.store.folders import RECORD_FILE, parse_record
from benchmarks.store.records import BaseRecord
from benchmarks.store.stored_results import StoredCell, is_published, kind_of_results
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

_REPOSITORY = Path(__file__).parents[2]


def report_files(out_dir: Path, just_computed: Collection[str] = ()) -> "Group":
    """Write the summary of a run, see :func:`write_published_files`, and return its :func:`run_screen`."""
    write_published_files(out_dir)
    return run_screen(out_dir, just_computed)


def run_screen(out_dir: Path, just_computed: Collection[str], folders: Iterable[Path] | None = None) -> "Group":
    """Compose the last screen of a run that has just computed the cells with these keys; of generation, its tables.

    ``folders`` may hold published results; by default those are ``results/*`` here and in the package's repository.
    """
    from rich.console import Group
    from rich.text import Text

    own = load_results(out_dir)
    if own.kind == "generation":
        return to_terminal(terminal_tables(own), own.faults)
    board = compared_with_published(own, published_folders() if folders is None else folders)
    noise = [f"Times are noisy ({subject}): {text}" for subject, text in clock_caveats(own) if subject != "not timed"]
    table = board_table(board, own, just_computed)
    return Group(
        to_terminal([table] if table else terminal_tables(own), board.faults),
        *(Text(line) for line in noise[:1]),
        Text(f"\nAlso written to {out_dir}: table.md, headline.csv, a figure. Next:"),
        Text(f"  consistentee table {out_dir}   all columns, scores and tests"),
        Text("  consistentee new-method mine   a method of your own, in one file"),
    )


def reached(run: Path, spec: BaseCellSpec, record: BaseRecord) -> str:
    """Describe a cell of a run at the middle budget: points against the full model if it is there, and the score."""
    kind, own = record.key_parts.kind, spec.folder
    places = {own, *(own.parents[2] / name / "default" / own.name for name in (FULL, f"token-{FULL}"))}
    found = [(place, parse_record(run / "cells" / place / RECORD_FILE, type(record))[0]) for place in places]
    cells = [StoredCell(one, run, str(place)) for place, one in found if one]
    middle = SPEEDUPS[kind][1]
    points = EqualCost(Results(run, kind, cells, []), [middle]).per_seed
    for point in points[points["label"] == record.label].to_dict("records"):
        score = f"{record.metric} {100 * point['score']:.1f}"
        if point["reach"] != Reach.MET:
            return f"{score} at {point['layers']:.2f} of {record.num_layers} layers"
        against_full = "" if np.isnan(point["points"]) else f"{100 * point['points']:+.1f} points, "
        return f"{against_full}{score} at {middle:g}x"
    return "done"


def published_folders() -> list[Path]:
    """Return the folders of published results, of the working directory and of the package's repository."""
    roots = dict.fromkeys(root.resolve() for root in (Path("results"), _REPOSITORY / "results"))
    return [place for root in roots for place in sorted(root.glob("*")) if is_published(place)]


def compared_with_published(own: Results, folders: Iterable[Path]) -> Results:
    """Merge a run with what is published and comparable; a curve of the run takes the place of a published one."""
    wanted = {_identity(record) for record in own.records}
    curves = {(record.task, record.label) for record in own.records}
    found, faults = [own], []
    for folder in folders:
        try:
            stored = load_results(folder) if kind_of_results(folder) == own.kind else None
        except UserError as error:
            faults.append(str(error))
            continue
        cells = []
        for cell in [] if stored is None else stored.cells:
            if _identity(cell.record) in wanted and (cell.record.task, cell.record.label) not in curves:
                cells.append(cell)
        if stored is not None and cells:
            found.append(replace(stored.with_cells(cells), faults=[]))
    board = merge(found)
    board.faults += faults
    return board


def _identity(record: BaseRecord) -> str:
    return canonical_json([record.task, record.backbone, record.seed, protocol(record)])


def board_table(board: Results, own: Results, just_computed: Collection[str]) -> Table | None:
    """Return the headline in short, with a mark at what was measured just now; None without a full model."""
    table, middle, found = headline_table(board), comparison_of(board).middle, comparison_of(board).headline
    if table is None:
        return None
    measured = {record.label for record in own.records if record.key in just_computed}
    marks = [">" if label in measured else "" for label in table.frame["method"]]
    published = dict.fromkeys(cell.root.name for cell in board.cells if cell.root != own.folder)
    notes = [
        f"At {middle:g}x 1/{middle:g} of the layers run, on average over rows; 0.0 is as good as the full model. "
        f"{INTERVALS_NOTE} Clock: the stock model's time / the method's, row by row (batch 1). {note_on_marks(found)}"
    ]
    missed = found[found["over"] | found["under"]].to_dict("records")
    if missed:
        layers = [f"{line['method']} {line['layers']:.2f} at {line['budget']:g}x" for line in missed]
        notes.append(f"Layers where a budget was not met: {', '.join(layers)}.")
    if published:
        others = ", ".join(published)
        notes.append(f"> measured just now; the others are stored ({others}), with the clocks of their machines.")
    if lacking := sorted(set(own.labels_to_compare) - set(table.frame["method"])):
        notes.append(f"Some task lacks {', '.join(lacking)}.")
    shown = {"method", *(f"at {speedup:g}x" for speedup in board.speedups), f"clock {middle:g}x b1"}
    columns = [Column(" ", "new"), *(column for column in table.columns if column.heading in shown)]
    return replace(table, frame=table.frame.assign(new=marks), columns=columns, notes=notes)
