"""What a run has to do: which cells are done, failed, refused or missing, and which timings are. Never loads torch."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.kinds.kind import Kind, kind_named
from benchmarks.kinds.rows import CellRows
from benchmarks.run.planning.published import Published
from benchmarks.run.planning.timed_knobs import TimedKnobs, timed_knobs
from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group, TimingSpec
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.folders import (
    RECORD_FILE,
    Fault,
    RunFolder,
    model_fault,
    read_cell,
    read_failure,
    read_timings,
)
from benchmarks.store.keys import key_parts, timing_key
from benchmarks.store.records import BaseRecord, BaseTimingRecord, FailureRecord, KeyParts
from benchmarks.store.stored_results import is_compact, kind_of_results
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.versions import Kind as KindName


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a run: ``record`` if it is done, ``failure`` if it was tried in vain, neither if it is missing.

    Attributes:
        is_again: whether it was measured, and is missing because its times are, and the model that they need.
    """

    spec: BaseCellSpec
    parts: KeyParts
    record: BaseRecord | None = None
    failure: FailureRecord | None = None
    is_again: bool = False

    @property
    def key(self) -> str:
        """The cell's key."""
        return self.parts.key

    @property
    def group(self) -> Group:
        """The cell's group."""
        return self.spec.group

    @property
    def kind(self) -> Kind:
        """The cell's kind."""
        return kind_named(self.spec.kind)

    @property
    def is_missing(self) -> bool:
        """Whether it is to be computed."""
        return self.record is None and self.failure is None


class Inputs:
    """The tasks and backbones of a run, each loaded or identified once."""

    def __init__(self, data_dir: Path | None, hashes: FileHashes) -> None:
        self._data_dir = data_dir
        self.hashes = hashes
        self._rows: dict[Hashable, CellRows[Any]] = {}
        self._fingerprints: dict[Hashable, str] = {}
        self._identity = cache(self._identify)

    def rows(self, spec: BaseCellSpec) -> CellRows[Any]:
        """Return a cell's rows."""
        if spec.rows not in self._rows:
            self._rows[spec.rows] = kind_named(spec.kind).load_rows(spec, self._data_dir)
        return self._rows[spec.rows]

    def parts(self, spec: BaseCellSpec) -> KeyParts:
        """Return all that a cell's results depend on. Raises UserError for what cannot be had.

        A parameter whose name ends in ``_backbone`` names one: its files count too.
        """
        if spec.rows not in self._fingerprints:
            self._fingerprints[spec.rows] = self.rows(spec).fingerprint()
        backbone = self._identity(spec.kind, spec.backbone)
        others = {
            name: self._identity(spec.kind, value)
            for name, value in spec.parameters.items()
            if name.endswith("_backbone") and isinstance(value, str)
        }
        return key_parts(spec, self._fingerprints[spec.rows], {**backbone, **others})

    def _identify(self, kind: str, backbone: str) -> dict[str, object]:
        return kind_named(kind).backbone_identity(backbone, self.hashes)


def refuse_another_kind(suite: BaseSuite, folder: RunFolder) -> None:
    """Raise UserError if a run's folder was filled by a suite of another kind, or by publishing."""
    if is_compact(folder.root):
        raise UserError(f"{folder.root} holds published results; give a folder of its own to the run, with --out")
    found = kind_of_results(folder.root)
    if found not in (None, suite.kind):
        raise UserError(
            f"{folder.root} holds results of {found}, suite {suite.name!r} is {suite.kind}; give another --out"
        )


def plan_cells(
    cells: Sequence[BaseCellSpec],
    inputs: Inputs,
    folder: RunFolder,
    on_fault: Callable[[Fault], None],
    *,
    fresh: bool = False,
    retry_failed: bool = False,
    published: Published | None = None,
) -> list[PlannedCell]:
    """Look up on disk what became of every cell; nothing is changed there.

    Args:
        cells: the cells.
        inputs: their tasks and backbones.
        folder: the run's folder.
        on_fault: called with every damaged or stale file, whose cell counts as missing.
        fresh: take every cell for missing.
        retry_failed: take failed cells for missing.
        published: where else to look; a run unpacks it first, and looks into its own folder alone.
    """
    planned = []
    for spec in cells:
        parts = inputs.parts(spec)
        if fresh:
            planned.append(PlannedCell(spec, parts))
            continue
        record, fault = read_cell(folder.cell(spec), parts, kind_named(spec.kind).record)
        if fault:
            on_fault(fault)
        if record is None and published and (stored := published.cell(spec, parts)):
            record = stored.record
        failure = None if record else read_failure(folder.cell(spec), parts.key)
        if failure and not failure.refused and (retry_failed or failure.may_pass):
            failure = None
        planned.append(PlannedCell(spec, parts, record, failure))
    return planned


def of_other_parameters(cells: Iterable[BaseCellSpec], folder: RunFolder) -> Iterator[Fault]:
    """Yield finished cells that have the label, task, backbone and seed of planned ones, and parameters of none.

    The suite had these parameters once. Tables would take both for one curve. ``cells``: all of some labels.
    """
    planned = {folder.cell(spec) for spec in cells}
    for of_label, seed in sorted({(place.parents[1], place.name) for place in planned}):
        for place in sorted(of_label.glob(f"*/{seed}")):
            if place not in planned and (place / RECORD_FILE).is_file():
                yield Fault(
                    place / RECORD_FILE, "stale", "the suite has other parameters under this label", whole=place
                )


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
                for task in inputs.rows(cell.spec).tasks:
                    method.check_task(task)
            except UserError as error:
                checked.append(refuse(cell, str(error)))
                continue
        checked.append(cell)
    return checked


def summary(suite: BaseSuite, planned: Sequence[PlannedCell]) -> str:
    """Say in one line how far a suite has come."""
    done = sum(cell.record is not None for cell in planned)
    missing = sum(cell.is_missing for cell in planned)
    refused = sum(bool(cell.failure and cell.failure.refused) for cell in planned)
    failed = len(planned) - done - missing - refused
    again = sum(cell.is_missing and cell.is_again for cell in planned)
    models_gone = f" ({again} again, for their times: the models are gone)" if again else ""
    parts = [f"{done} done", f"{missing} to run{models_gone}"]
    parts += [f"{refused} not defined for their task"] if refused else []
    parts += [f"{failed} failed before (--retry-failed tries them again)"] if failed else []
    return f"suite {suite.name}: {len(planned)} cells: {', '.join(parts)}"


def finished_neighbours(cells: Sequence[BaseCellSpec], inputs: Inputs, folder: RunFolder) -> list[PlannedCell]:
    """Return the finished cells among those that a run was not asked about; nothing of theirs is touched."""
    wanted = [(spec, inputs.parts(spec)) for spec in cells]
    found = [
        PlannedCell(spec, parts, read_cell(folder.cell(spec), parts, kind_named(spec.kind).record)[0])
        for spec, parts in wanted
    ]
    return [cell for cell in found if cell.record is not None]


def groups_of(cells: Iterable[PlannedCell]) -> dict[Group, list[PlannedCell]]:
    """Return the cells by group."""
    groups: dict[Group, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return groups


def knobs_to_time(cells: Iterable[PlannedCell], protocol: TimingSpec) -> TimedKnobs:
    """Return what is timed of the cells of a group that are done."""
    return timed_knobs([cell.record for cell in cells if cell.record], protocol)


def covers(timings: Iterable[BaseTimingRecord], wanted: TimedKnobs) -> bool:
    """Say whether some timings together hold all knobs that are to be timed."""
    timed = {(contender.cell_key, contender.knob) for timing in timings for contender in timing.contenders}
    return {(key, knob) for key, knobs in wanted.items() for knob in knobs} <= timed


def has_to_be_timed(
    cell: PlannedCell, taken: Sequence[BaseTimingRecord], wanted: TimedKnobs, folder: RunFolder
) -> bool:
    """Say whether times of a cell are missing: those of some knob, while its model is there, or all of them.

    Where the model is gone, times at knobs that were chosen by older rules stand: a model may cost hours.
    """
    if covers(taken, {cell.key: wanted.get(cell.key, ())}):
        return False
    is_timed = any(contender.cell_key == cell.key for timing in taken for contender in timing.contenders)
    return not is_timed or lost_model(cell, folder) is None


def timings_of(
    group: Group,
    kind: KindName,
    folder: RunFolder,
    protocol: TimingSpec,
    on_fault: Callable[[Fault], None],
    *,
    published: Published | None = None,
) -> list[BaseTimingRecord]:
    """Return the timings of a group that were taken by this protocol, on disk and, if given, published ones."""
    found, faults = read_timings(folder.timing(*group), kind_named(kind).timing)
    for fault in faults:
        on_fault(fault)
    taken = [*found, *(published.timings_of(group).values() if published else ())]
    return [timing for timing in taken if timing.key == timing_key(protocol, kind)]


def reopen_for_timing(
    cells: Sequence[PlannedCell],
    folder: RunFolder,
    protocol: TimingSpec,
    on_fault: Callable[[Fault], None],
    *,
    published: Published | None = None,
) -> list[PlannedCell]:
    """Take finished cells for missing where they have to be timed and their model is damaged or gone."""
    planned = []
    for group, members in groups_of(cells).items():
        taken = timings_of(group, members[0].spec.kind, folder, protocol, on_fault, published=published)
        wanted = knobs_to_time(members, protocol)
        for cell in members:
            reason = lost_model(cell, folder) if has_to_be_timed(cell, taken, wanted, folder) else None
            planned.append(cell if reason is None else replace(cell, record=None, is_again=cell.record is not None))
            place = folder.model(cell.key)
            if reason is not None and place.is_dir():
                on_fault(Fault(place, "damaged", reason, whole=place))
    return planned


def timing_due(
    group: Group,
    cells: Sequence[PlannedCell],
    folder: RunFolder,
    protocol: TimingSpec,
    on_fault: Callable[[Fault], None],
    *,
    published: Published | None = None,
) -> bool:
    """Say whether a group has to be timed, now or once its missing cells are done."""
    if any(cell.is_missing for cell in cells):
        return True
    taken = timings_of(group, cells[0].spec.kind, folder, protocol, on_fault, published=published)
    wanted = knobs_to_time(cells, protocol)
    return any(has_to_be_timed(cell, taken, wanted, folder) for cell in cells)


def lost_model(cell: PlannedCell, folder: RunFolder) -> str | None:
    """Say what is wrong with the trained model of a cell, which only timing needs; None if nothing is."""
    return model_fault(folder.model(cell.key), cell.kind.model_file)
