"""The screen that a run ends with: its methods at equal cost among the published ones that are comparable.

Comparable are cells of the same task, backbone and seed, trained by the same recipe on the same rows, by the same
versions of training and engine. All else is written to files.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.analysis import write_published_files
from benchmarks.analysis.comparison import comparison_of
from benchmarks.analysis.frames import Results, load_results, merge, protocol
from benchmarks.analysis.provenance import clock_caveats
from benchmarks.analysis.rendering import INTERVALS_NOTE, Column, Table, note_on_marks, to_terminal
from benchmarks.analysis.tables import headline_table, terminal_tables
from benchmarks.specs.schema import canonical_json
from benchmarks.store.records import AnyRecord
from benchmarks.store.results_folder import is_published, kind_of_results
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

_REPOSITORY = Path(__file__).parents[2]


def report_files(out_dir: Path, just_computed: Collection[str] = (), folders: Iterable[Path] | None = None) -> "Group":
    """Write the summary of a run, see :func:`write_published_files`, and compose its last screen.

    Args:
        out_dir: the run's folder.
        just_computed: keys of the cells that the run has just computed.
        folders: may hold published results; by default those are ``results/*`` here and in the package's repository.
    """
    from rich.console import Group
    from rich.text import Text

    own = load_results(out_dir)
    write_published_files(own, out_dir)
    if own.kind == "generation":
        return to_terminal(terminal_tables(own), own.faults)
    board = compared_with_published(own, published_folders() if folders is None else folders)
    noise = [f"Times are noisy ({subject}): {text}" for subject, text in clock_caveats(own) if subject != "not timed"]
    table = board_table(board, own, just_computed)
    return Group(
        to_terminal([table] if table else terminal_tables(own), board.faults),
        *(Text(line) for line in noise[:1]),
        Text(f"\nAlso written to {out_dir}: {'table.md, headline.csv' if table else 'table.md'}, a figure. Next:"),
        Text(f"  consistentee table {out_dir}   all columns, scores and tests"),
        Text("  consistentee new-method mine   a method of your own, in one file"),
    )


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
            if kind_of_results(folder) != own.kind:
                continue
            stored = load_results(folder)
        except UserError as error:
            faults.append(str(error))
            continue
        stay = [_identity(r) in wanted and (r.task, r.label) not in curves for r in stored.records]
        if any(stay):
            comparable = stored.where(stay)
            comparable.faults = []
            found.append(comparable)
    board = merge(found) if len(found) > 1 else own  # alone it is read and resampled already
    board.faults = [*board.faults, *faults]
    return board


def _identity(record: AnyRecord) -> str:
    return canonical_json([record.task, record.backbone, record.seed, protocol(record)])


def board_table(board: Results, own: Results, just_computed: Collection[str]) -> Table | None:
    """Return the headline in short, with a mark at what was measured just now; None without a full model."""
    table, middle, found = headline_table(board), comparison_of(board).middle, comparison_of(board).headline
    if table is None:
        return None
    measured = {record.label for record in own.records if record.key in just_computed}
    marks = [">" if label in measured else "" for label in table.frame["method"]]
    published = dict.fromkeys(part.stored.root.name for part in board.parts if part.stored.root != own.folder)
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
