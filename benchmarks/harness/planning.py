"""What a run has to do: which cells are done, failed, refused or missing, and which timings are. Never loads torch."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.harness.fingerprint import (
    KEY_LIBRARIES,
    FileHashes,
    backbone_identity,
    cell_key,
    library_versions,
    modules_fingerprint,
)
from benchmarks.harness.records import CellRecord, FailureRecord, OperatingPoint, TimingRecord
from benchmarks.harness.spec import CellSpec, Group, SuiteSpec, TimingSpec, canonical_json
from benchmarks.harness.storage import Fault, RunFolder, model_fault, read_cell, read_failure, read_timing
from benchmarks.tasks.loader import load_task
from consistentee.data import TaskData
from consistentee.errors import UserError
from consistentee.method import get_method

_TIMING_CODE = (
    "benchmarks.harness.measure",
    "benchmarks.harness.timing",
    "consistentee.classification",
    "consistentee.classifiers",
    "consistentee.backbones.cascade",
    "consistentee.backbones.encoders",
    "consistentee.backbones.token_exits",
)


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a run: ``record`` if it is done, ``failure`` if it was tried in vain, neither if it is missing."""

    spec: CellSpec
    key: str
    record: CellRecord | None = None
    failure: FailureRecord | None = None

    @property
    def group(self) -> Group:
        """The cell's group."""
        return self.spec.group

    @property
    def is_missing(self) -> bool:
        """Whether it is to be computed."""
        return self.record is None and self.failure is None


class Inputs:
    """The tasks and backbones of a run, each loaded or identified once."""

    def __init__(self, data_dir: Path | None, hashes: FileHashes) -> None:
        self._data_dir = data_dir
        self.hashes = hashes
        self._load = cache(self._load_task)
        self._identity = cache(self._identify)
        self._fingerprint = cache(self._task_fingerprint)

    def task(self, spec: CellSpec) -> TaskData:
        """Return a cell's task, its validation and test rows capped."""
        return self._load(spec.task, spec.validation_rows, spec.test_rows)

    def key(self, spec: CellSpec) -> str:
        """Return a cell's key. Raises UserError for what cannot be had."""
        task = self._fingerprint(spec.task, spec.validation_rows, spec.test_rows)
        return cell_key(spec, task, self._identity(spec.backbone))

    def _load_task(self, name: str, validation_rows: int | None, test_rows: int | None) -> TaskData:
        return load_task(name, self._data_dir).capped(validation=validation_rows, test=test_rows)

    def _task_fingerprint(self, name: str, validation_rows: int | None, test_rows: int | None) -> str:
        return self._load(name, validation_rows, test_rows).fingerprint()

    def _identify(self, backbone: str) -> dict[str, object]:
        return backbone_identity(backbone, self.hashes)


def plan_cells(
    cells: Sequence[CellSpec],
    inputs: Inputs,
    folder: RunFolder,
    on_fault: Callable[[Fault], None],
    *,
    fresh: bool = False,
    retry_failed: bool = False,
) -> list[PlannedCell]:
    """Look up on disk what became of every cell; nothing is changed there.

    Args:
        cells: the cells.
        inputs: their tasks and backbones.
        folder: the run's folder.
        on_fault: called with every damaged or stale file, whose cell counts as missing.
        fresh: take every cell for missing.
        retry_failed: take failed cells for missing.
    """
    planned = []
    for spec in cells:
        key = inputs.key(spec)
        if fresh:
            planned.append(PlannedCell(spec, key))
            continue
        record, fault = read_cell(folder.cell(spec), key)
        if fault:
            on_fault(fault)
        failure = None if record else read_failure(folder.cell(spec), key)
        if failure and retry_failed and not failure.refused:
            failure = None
        planned.append(PlannedCell(spec, key, record, failure))
    return planned


def refuse_undefined(
    planned: Sequence[PlannedCell], inputs: Inputs, refuse: Callable[[PlannedCell, str], PlannedCell]
) -> list[PlannedCell]:
    """Build the method of every missing cell, so that a wrong name or parameter ends the run before any training.

    A cell whose method is not defined for its task becomes what ``refuse`` makes of it and the reason.
    """
    checked = []
    for cell in planned:
        if cell.is_missing:
            method = get_method(cell.spec.method, **cell.spec.parameters)
            try:
                method.check_task(inputs.task(cell.spec))
            except UserError as error:
                checked.append(refuse(cell, str(error)))
                continue
        checked.append(cell)
    return checked


def summary(suite: SuiteSpec, planned: Sequence[PlannedCell]) -> str:
    """Say in one line how far a suite has come."""
    done = sum(cell.record is not None for cell in planned)
    missing = sum(cell.is_missing for cell in planned)
    refused = sum(bool(cell.failure and cell.failure.refused) for cell in planned)
    failed = len(planned) - done - missing - refused
    parts = [f"{done} done", f"{missing} to run"]
    parts += [f"{refused} not defined for their task"] if refused else []
    parts += [f"{failed} failed before (--retry-failed tries them again)"] if failed else []
    return f"suite {suite.name}: {len(planned)} cells: {', '.join(parts)}"


def finished_neighbours(cells: Sequence[CellSpec], inputs: Inputs, folder: RunFolder) -> list[PlannedCell]:
    """Return the finished cells among those that a run was not asked about; nothing of theirs is touched."""
    keyed = [(spec, inputs.key(spec)) for spec in cells]
    found = [PlannedCell(spec, key, read_cell(folder.cell(spec), key)[0]) for spec, key in keyed]
    return [cell for cell in found if cell.record is not None]


def groups_of(cells: Iterable[PlannedCell]) -> dict[Group, list[PlannedCell]]:
    """Return the cells by group."""
    groups: dict[Group, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return groups


def protocol_key(protocol: TimingSpec) -> str:
    """Return a hash of how a timing is taken: protocol, code, libraries. What was timed is in its contenders."""
    parts = [protocol.model_dump(mode="json"), modules_fingerprint(_TIMING_CODE), library_versions(KEY_LIBRARIES)]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def timed_points(record: CellRecord, protocol: TimingSpec) -> list[OperatingPoint]:
    """Return the operating points of a cell that are timed: the cheapest ones that can run live."""
    live = [point for point in record.operating_points if point.live_rows]
    return sorted(live, key=lambda point: point.test.average_layers)[: protocol.points_per_cell]


def covers(timing: TimingRecord, cells: Iterable[PlannedCell], protocol: TimingSpec) -> bool:
    """Say whether a timing was taken by this protocol and holds every operating point of the cells that are done."""
    timed = {(contender.cell_key, contender.knob) for contender in timing.contenders}
    wanted = {(cell.key, point.knob) for cell in cells if cell.record for point in timed_points(cell.record, protocol)}
    return timing.key == protocol_key(protocol) and wanted <= timed


def reopen_for_timing(
    cells: Sequence[PlannedCell], folder: RunFolder, protocol: TimingSpec, on_fault: Callable[[Fault], None]
) -> list[PlannedCell]:
    """Take finished cells for missing where a timing is due and needs their model, which is damaged or gone."""
    planned = []
    for group, members in groups_of(cells).items():
        due = timing_due(group, members, folder, protocol, on_fault)
        planned += [_without_lost_model(cell, folder, protocol) if due else cell for cell in members]
    return planned


def timing_due(
    group: Group,
    cells: Sequence[PlannedCell],
    folder: RunFolder,
    protocol: TimingSpec,
    on_fault: Callable[[Fault], None],
) -> bool:
    """Say whether a group has to be timed, now or once its missing cells are done."""
    if any(cell.is_missing for cell in cells):
        return True
    if not any(cell.record and timed_points(cell.record, protocol) for cell in cells):
        return False
    timing, fault = read_timing(folder.timing(*group))
    if fault:
        on_fault(fault)
    return timing is None or not covers(timing, cells, protocol)


def _without_lost_model(cell: PlannedCell, folder: RunFolder, protocol: TimingSpec) -> PlannedCell:
    needed = cell.record is not None and timed_points(cell.record, protocol)
    return replace(cell, record=None) if needed and model_fault(folder.model(cell.key)) else cell
