"""What some results folders hold: what can be read, the runs that it is of, and what cannot be used."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.analysis.leaderboard.faults import record_fault, timing_fault
from benchmarks.analysis.leaderboard.settings import setting_of, task_names
from benchmarks.analysis.panels.protocols import Protocol
from benchmarks.analysis.panels.results import Panel, StoredCell, refuse_generation
from benchmarks.store.records import CellRecord, TimingRecord
from benchmarks.store.stored_results import open_results
from consistentee.errors import UserError


@dataclass
class Collected:
    """Cells and timings by their folder, what was left out and why, and runs by the width of their scale, if narrow.

    A run is what methods are compared on: one protocol, and so one task, backbone, recipe and seed.
    """

    cells: dict[Path, list[StoredCell]] = field(default_factory=dict)
    timings: dict[Path, list[TimingRecord]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    narrow: dict[Protocol, float] = field(default_factory=dict)

    @property
    def everything(self) -> list[StoredCell]:
        """The cells of all folders."""
        return [cell for cells in self.cells.values() for cell in cells]

    @property
    def settings(self) -> list[Protocol]:
        """All settings, in the order of the folders."""
        return list(dict.fromkeys(setting_of(Protocol.of(cell.record)) for cell in self.everything))


def collect(folders: Iterable[Path]) -> Collected:
    """Read results folders; what is damaged or of another kind is left out, and named."""
    collected = Collected()
    for folder in folders:
        try:
            refuse_generation(folder)
            found = open_results(folder, CellRecord, TimingRecord)
        except UserError as error:
            collected.left_out.append(str(error))
            continue
        collected.left_out += [str(fault) for fault in found.faults]
        for cell in found.cells:
            if fault := record_fault(cell.record):
                collected.left_out.append(f"{cell.rows.place} is damaged ({fault})")
            else:
                collected.cells.setdefault(folder, []).append(cell)
        for timing in found.timings:
            if fault := timing_fault(timing):
                collected.left_out.append(f"a timing of {timing.task} in {folder} is damaged ({fault})")
            else:
                collected.timings.setdefault(folder, []).append(timing)
    return collected


def shown_names(cells: Sequence[StoredCell]) -> dict[tuple[str, str], str]:
    """Return the shown name of every (label, method): the label, with the method where one label names several."""
    methods: dict[str, set[str]] = {}
    for cell in cells:
        methods.setdefault(cell.record.label, set()).add(cell.record.method)
    return {
        (label, method): label if len(found) == 1 else f"{label} ({method})"
        for label, found in methods.items()
        for method in found
    }


def panels_by_setting(collected: Collected) -> list[Panel]:
    """Return a panel for every setting, under the name of its task; each curve of a run is from the first folder."""
    names, owners = shown_names(collected.everything), dict[tuple[Protocol, str], Path]()
    by_setting: dict[Protocol, list[StoredCell]] = {}
    for folder, cells in collected.cells.items():
        for cell in cells:
            run, name = Protocol.of(cell.record), names[cell.record.label, cell.record.method]
            if owners.setdefault((run, name), folder) == folder:
                named = replace(cell, record=cell.record.model_copy(update={"label": name}))
                by_setting.setdefault(setting_of(run), []).append(named)
    timings = [timing for of_folder in collected.timings.values() for timing in of_folder]
    tasks = task_names(by_setting)
    return [
        Panel(tasks[setting], setting.backbone, tuple(cells), tuple(_timings_of(cells, timings)))
        for setting, cells in by_setting.items()
    ]


def _timings_of(cells: Iterable[StoredCell], timings: Iterable[TimingRecord]) -> list[TimingRecord]:
    keys = {cell.record.key for cell in cells}
    return [timing for timing in timings if any(contender.cell_key in keys for contender in timing.contenders)]
