"""What a run ends with: one screen, its methods at equal cost among the published ones that are comparable.

Comparable are cells of the same task and backbone, trained by the same recipe on the same rows with the same seeds, by
the same versions of training and engine. All else, the long tables first of all, goes to files.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost
from benchmarks.analysis.comparisons.ranking import block_name, compared_panels
from benchmarks.analysis.panels.means import geometric_mean_of_all, mean_of_all
from benchmarks.analysis.panels.protocols import Protocol
from benchmarks.analysis.panels.results import FULL, MAJORITY, ORACLE, Panel, StoredCell, panels
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.rows.caveats import caveats_of_instances
from benchmarks.analysis.rows.instances import row_for_half
from benchmarks.analysis.tables.text import MISSING, TextTable, to_rich
from benchmarks.specs.targets import SPEEDUPS
from benchmarks.store.compact.reading import rows_of_compact
from benchmarks.store.folders import Fault
from benchmarks.store.records import CellRecord, TimingRecord
from benchmarks.store.stored_results import is_compact, kind_of_results, open_results
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

_REPOSITORY = Path(__file__).parents[3]
_JUST_MEASURED = ">"
_SINGLE_KNOB = "*"
_MIDDLE = 2.0
_NOT_SHOWN = (FULL, ORACLE, MAJORITY)
_OF_THE_CLOCK = ("noisy timing", "busy machine")


@dataclass(frozen=True)
class Board:
    """The methods of some tasks, those that a run has just measured marked.

    Attributes:
        panels: what was measured, and what is published and comparable.
        own: labels of the run's curves.
        measured: of those, the ones that it has just computed.
        stored: what is published of these, with the full model that it was measured beside.
        timed: what the run has just timed, or its folder holds if it has computed nothing.
        published: the folders that all else comes from.
    """

    panels: tuple[Panel, ...]
    own: frozenset[str]
    measured: frozenset[str]
    stored: tuple[Panel, ...] = ()
    timed: tuple[Panel, ...] = ()
    published: tuple[Path, ...] = ()


def run_screen(out_dir: Path, just_computed: Collection[str], folders: Iterable[Path] | None = None) -> "Group":
    """Return the last screen of a run of classification.

    Args:
        out_dir: the run's folder.
        just_computed: keys of the cells that the run has computed.
        folders: where published results may lie; by default ``results/*`` here and in the package's repository.

    Raises:
        UserError: the folder holds no results.
    """
    from rich.console import Group
    from rich.text import Text

    board, faults = load_board(out_dir, just_computed, published_folders() if folders is None else folders)
    table = board_table(board)
    return Group(
        Text(table.title, style="bold"),
        to_rich(replace(table, title="", notes=())),
        *(Text(line) for line in [*table.notes, *_clock_lines(board.timed)]),
        *(Text(f"left out: {fault}", style="yellow") for fault in faults),
        Text(f"\nAll else is in {out_dir}: table.md, table.csv, curves.png. What next:"),
        *(Text(line) for line in _next_commands(out_dir)),
    )


def _next_commands(out_dir: Path) -> list[str]:
    commands = {
        f"consistentee table {out_dir}": "every operating point, with intervals and milliseconds",
        "consistentee new-method mine": "a method of your own, in one file",
    }
    width = max(map(len, commands))
    return [f"  {command:{width}}   {what}" for command, what in commands.items()]


def published_folders() -> list[Path]:
    """Return the folders of published results, of the working directory and of the package's repository."""
    roots = dict.fromkeys(root.resolve() for root in (Path("results"), _REPOSITORY / "results"))
    return [folder for root in roots if root.is_dir() for folder in sorted(root.iterdir()) if is_compact(folder)]


def load_board(
    out_dir: Path, just_computed: Collection[str], folders: Iterable[Path]
) -> tuple[Board, list[Fault | UserError]]:
    """Read a run and what is published and comparable.

    A curve of the run takes the place of a published one; where it was just computed, both are shown.
    """
    own = open_results(out_dir, CellRecord, TimingRecord)
    if not own.cells:
        raise UserError(f"{own.faults[0]}, and {out_dir} holds no other finished cell; run the suite again")
    faults: list[Fault | UserError] = list(own.faults)
    cells, timings, used = list(own.cells), list(own.timings), []
    measured = {cell.record.label for cell in own.cells if cell.record.key in just_computed}
    protocols = {Protocol.of(cell.record) for cell in own.cells}
    stored: list[Panel] = []
    for folder in folders:
        try:
            more = _comparable(folder, protocols)
        except UserError as error:
            faults.append(error)
            continue
        if more is None:
            continue
        taken = {_curve(cell.record) for cell in cells}
        cells += [cell for cell in more[0] if _curve(cell.record) not in taken]
        timings += more[1]
        stored = stored or [panel for panel in panels(*more) if measured & set(panel.methods)]
        used.append(folder)
    labels = {cell.record.label for cell in own.cells}
    board = Board(
        panels=tuple(panels(cells, timings)),
        own=frozenset(labels),
        measured=frozenset(measured),
        stored=tuple(stored),
        timed=tuple(panels(own.cells, [timing for timing in own.timings if _holds(timing, just_computed)])),
        published=tuple(used),
    )
    return board, faults


def _holds(timing: TimingRecord, keys: Collection[str]) -> bool:
    return not keys or any(contender.cell_key in keys for contender in timing.contenders)


def _comparable(folder: Path, protocols: Collection[Protocol]) -> tuple[list[StoredCell], list[TimingRecord]] | None:
    """Return the cells of a folder that follow one of the protocols, and their timings; None if there are none."""
    if kind_of_results(folder) != "classification" or not rows_of_compact(folder) & {p.rows for p in protocols}:
        return None
    found = open_results(folder, CellRecord, TimingRecord)
    cells = [cell for cell in found.cells if Protocol.of(cell.record) in protocols]
    keys = {cell.record.key for cell in cells}
    timings = [t for t in found.timings if any(contender.cell_key in keys for contender in t.contenders)]
    return (cells, timings) if cells else None


def _curve(record: CellRecord) -> tuple[str, ...]:
    return record.task, record.backbone, record.label


def board_table(board: Board) -> TextTable:
    """Return the leaderboard: points against the full model at every budget, and the clock at half of the layers.

    Of several tasks it shows means, of those that (nearly) all methods are defined for, see ``compared_panels``. Where
    a task lacks the full model, scores stand in place of points.
    """
    compared = compared_panels(board.panels)
    against_full = all(FULL in panel.methods.values() for panel in compared)
    methods = {label: method for panel in compared for label, method in panel.methods.items()}
    places: dict[str, tuple[Sequence[Panel], str]] = {
        label: (compared, label) for label, method in methods.items() if method not in _NOT_SHOWN
    }
    stored = _of_the_same_tasks(board.stored, compared)
    again = {label for panel in stored for label, method in panel.methods.items() if method not in _NOT_SHOWN}
    places |= {f"{label} (stored)": (stored, label) for label in sorted(again & board.measured)}
    found = {s: {name: _on_all(*place, s) for name, place in places.items()} for s in SPEEDUPS}
    labels = [label for label in places if label in board.own or found[_MIDDLE][label]]
    labels.sort(key=lambda label: -_mean(found[_MIDDLE][label], against_full))
    marked = board.measured if set(labels) - board.measured else frozenset()
    clocks = {name: _clock(places[name][0], found[_MIDDLE][name], places[name][1]) for name in labels}
    return TextTable(
        title=_title(compared, against_full),
        headings=(" ", "method", *(f"at {s:g}x" for s in SPEEDUPS), "clock at 2x"),
        cells=tuple(
            (
                _JUST_MEASURED if label in marked else "",
                label,
                *(_value(found[speedup][label], against_full) for speedup in SPEEDUPS),
                clocks[label],
            )
            for label in labels
        ),
        notes=_how_to_read(
            board, marked, [one for at in found.values() for ones in at.values() for one in ones], clocks.values()
        ),
        words=(" ", "method"),
    )


def _title(compared: Sequence[Panel], against_full: bool) -> str:
    where = block_name(compared[0]) if len(compared) == 1 else f"mean of {len(compared)} tasks"
    if not against_full:
        return f"{where}: score in %, at equal cost (run the full model too, for points against it)"
    if len(compared) > 1:
        return f"{where}: points against the full model at equal cost"
    point = compared[0].cells_of_method(FULL)[0].record.operating_points[-1]
    low, high = point.score_interval
    full = f"{compared[0].metric} {100 * point.test.scores[compared[0].metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{where}: points against the full model ({full}) at equal cost"


def _how_to_read(
    board: Board, marked: Collection[str], found: Sequence[AtCost], clocks: Iterable[str]
) -> tuple[str, ...]:
    line = (
        "At 2x half of the layers run, on average over rows; 0.0 is as good as the full model. Clock: the stock "
        "model's time / the method's at 2x, row by row (batch 1)."
    )
    notes = [line]
    if any(clock.endswith(_SINGLE_KNOB) for clock in clocks):
        notes.append(f"{_SINGLE_KNOB} of the best knob within half of the layers; those that 2x mixes were not timed.")
    if marked:
        others = ", ".join(dict.fromkeys(folder.name for folder in board.published)) or "earlier runs"
        notes.append(
            f"{_JUST_MEASURED} measured just now; the others are stored ({others}), with the clocks of their machines."
        )
    if any(Reach.OVER in one.reaches for one in found):
        notes.append("† even the cheapest knob costs more.")
    return tuple(notes)


def _of_the_same_tasks(stored: Sequence[Panel], compared: Sequence[Panel]) -> list[Panel]:
    """Return the stored panels of what is compared; nothing if some task is not stored: means would be of others."""
    found = {block_name(panel): panel for panel in stored}
    names = [block_name(panel) for panel in compared]
    return [found[name] for name in names] if set(names) <= set(found) else []


def _on_all(compared: Sequence[Panel], label: str, speedup: float) -> list[AtCost]:
    """Return a curve on every task; nothing where some task lacks it."""
    if any(label not in panel.methods for panel in compared):
        return []
    return [at_equal_cost(panel, label, speedup) for panel in compared]


def _mean(found: Sequence[AtCost], against_full: bool) -> float:
    """Return the mean of points, or of scores; minus infinity of nothing."""
    mean = mean_of_all([one.points if against_full else one.score for one in found])
    return -np.inf if mean is None else mean


def _value(found: Sequence[AtCost], against_full: bool) -> str:
    mean = _mean(found, against_full)
    if not np.isfinite(mean):
        return MISSING
    mark = "†" if any(Reach.OVER in one.reaches for one in found) else ""
    return f"{100 * mean:+.1f}{mark}" if against_full else f"{100 * mean:.1f}{mark}"


def _clock(compared: Sequence[Panel], found: Sequence[AtCost], label: str) -> str:
    """Return the speed-up by the clock at batch 1, of several tasks the geometric mean; it may not be known.

    Where a knob of the mixture was not timed, it is that of the single knob chosen for half of the layers, marked.
    """
    mixed = geometric_mean_of_all([one.time_ratios.get(1) for one in found])
    if mixed is not None:
        return f"{mixed:.2f}x"
    rows = [row_for_half(panel, label) if label in panel.methods else None for panel in compared]
    single = geometric_mean_of_all([None if row is None else row.speedups.time_ratios.get(1) for row in rows])
    return MISSING if single is None else f"{single:.2f}x{_SINGLE_KNOB}"


def _clock_lines(timed: Sequence[Panel]) -> list[str]:
    """Say that times are noisy where they are."""
    found = [caveat for panel in timed for caveat in caveats_of_instances(panel) if caveat.subject in _OF_THE_CLOCK]
    return [f"Times are noisy ({found[0].subject}): {found[0].text}"] if found else []
