"""What some results folders hold: what can be read, the runs that it is of, and what cannot be used."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.analysis.leaderboard.faults import record_fault, timing_fault
from benchmarks.analysis.panels.results import Panel, StoredCell, panels, refuse_generation
from benchmarks.store.records import CellRecord, TimingRecord
from benchmarks.store.stored_results import open_results
from consistentee.errors import UserError


class Run(NamedTuple):
    """What methods are compared on: one task as it was cut, on one backbone, with one seed."""

    task: str
    task_version: int
    backbone: str
    num_layers: int
    metric: str
    train_rows: int
    test_rows: int
    seed: int

    @property
    def setting(self) -> tuple[object, ...]:
        """All but the seed: runs of one setting are one task in the count of tasks."""
        return self[:-1]


@dataclass
class Collected:
    """Cells and timings by their folder, what was left out and why, and runs by the width of their scale, if narrow."""

    cells: dict[Path, list[StoredCell]] = field(default_factory=dict)
    timings: dict[Path, list[TimingRecord]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    narrow: dict[Run, float] = field(default_factory=dict)


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


def run_of(record: CellRecord) -> Run:
    """Return the run that a record belongs to."""
    return Run(**{name: getattr(record, name) for name in Run._fields})


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
    """Return a panel for every task as it was cut and every backbone, each curve of a run from the first folder."""
    everything = [cell for cells in collected.cells.values() for cell in cells]
    names, owners = shown_names(everything), dict[tuple[Run, str], Path]()
    by_setting: dict[tuple[object, ...], list[StoredCell]] = {}
    for folder, cells in collected.cells.items():
        for cell in cells:
            run, name = run_of(cell.record), names[cell.record.label, cell.record.method]
            if owners.setdefault((run, name), folder) == folder:
                named = replace(cell, record=cell.record.model_copy(update={"label": name}))
                by_setting.setdefault(run.setting, []).append(named)
    timings = [timing for of_folder in collected.timings.values() for timing in of_folder]
    return [panel for cells in by_setting.values() for panel in panels(cells, timings)]
