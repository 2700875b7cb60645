"""Plan a run: which cells are done, failed, refused or missing, which timings are due, and which knobs they time.

Never loads torch.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.analysis.equal_cost import mixture_at
from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import AnyKind, CellRows
from benchmarks.run.published import Published
from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group, TimingSpec
from benchmarks.specs.targets import Speedups
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
from benchmarks.store.generation_records import GenerationRecord
from benchmarks.store.keys import key_parts, timing_key
from benchmarks.store.records import BaseRecord, BaseTimingRecord, CellRecord, FailureRecord, KeyParts
from benchmarks.store.stored_results import is_published, kind_of_results
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.versions import Kind as KindName

TimedKnobs = Mapping[str, Sequence[float]]
"""Key of a cell -> its knobs that are timed."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a run.

    Attributes:
        record: its result, if it is done.
        failure: the error, if it ran and failed, or if its method is not defined for the task.
        is_again: whether it was measured before, and runs again because its times and its trained model are missing.
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
    def kind(self) -> AnyKind:
        """The cell's kind."""
        return kind_named(self.spec.kind)

    def failed(self, failure: FailureRecord) -> "PlannedCell":
        """Return the cell with the note of a failure."""
        return replace(self, failure=failure)

    @property
    def is_missing(self) -> bool:
        """Whether the cell has to be computed."""
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
        """Collect everything that a cell's results depend on.

        A parameter whose name ends in ``_backbone`` names a backbone: the hashes of its files count too.

        Raises:
            UserError: the data or a backbone cannot be found.
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
    """Raise UserError if a folder holds results of another kind of suite, or published results."""
    if is_published(folder.root):
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
    """Read the state of every cell from disk, without changing anything there.

    Args:
        cells: the cells.
        inputs: their tasks and backbones.
        folder: the run's folder.
        on_fault: called with every damaged or stale file, whose cell counts as missing.
        fresh: take every cell for missing.
        retry_failed: take failed cells for missing.
        published: published results to look into as well; a run copies them into its folder first.
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


def cells_of_other_parameters(cells: Iterable[BaseCellSpec], folder: RunFolder) -> Iterator[Fault]:
    """Yield finished cells whose parameters the suite no longer lists under their label.

    Tables would put the old and the new parameters into one curve.

    Args:
        cells: all cells of the labels in question.
        folder: the run's folder.
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

    Args:
        planned: the cells.
        inputs: their tasks and backbones.
        refuse: (cell, reason) -> the cell, marked as not defined for its task.
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
    """Summarise in one line how many cells of a suite are done and missing."""
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


def finished_outside_filter(cells: Sequence[BaseCellSpec], inputs: Inputs, folder: RunFolder) -> list[PlannedCell]:
    """Return the finished cells among those outside a run's filter. They are timed with the others, never changed."""
    wanted = [(spec, inputs.parts(spec)) for spec in cells]
    found = [
        PlannedCell(spec, parts, read_cell(folder.cell(spec), parts, kind_named(spec.kind).record)[0])
        for spec, parts in wanted
    ]
    return [cell for cell in found if cell.record is not None]


def groups_of(cells: Iterable[PlannedCell]) -> dict[Group, list[PlannedCell]]:
    """Group cells by task, backbone and seed."""
    groups: dict[Group, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return groups


def knobs_to_time(cells: Iterable[PlannedCell], protocol: TimingSpec) -> TimedKnobs:
    """Choose the knobs to time of the finished cells of a group."""
    return timed_knobs([cell.record for cell in cells if cell.record], protocol)


def covers(timings: Iterable[BaseTimingRecord], wanted: TimedKnobs) -> bool:
    """Check whether timings together hold all knobs that are to be timed."""
    timed = {(contender.cell_key, contender.knob) for timing in timings for contender in timing.contenders}
    return {(key, knob) for key, knobs in wanted.items() for knob in knobs} <= timed


def has_to_be_timed(
    cell: PlannedCell, taken: Sequence[BaseTimingRecord], wanted: TimedKnobs, folder: RunFolder
) -> bool:
    """Check whether a cell has to be timed: some knob has no times and the model is there, or no knob has any.

    If the model is gone, times at knobs chosen by older rules are kept: training the model again may take hours.
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
    """Return the timings of a group taken by this protocol, from the run's folder and from published results."""
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
    """Mark finished cells as missing if they have to be timed and their model is damaged or gone."""
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
    """Check whether a group has to be timed, now or once its missing cells are done."""
    if any(cell.is_missing for cell in cells):
        return True
    taken = timings_of(group, cells[0].spec.kind, folder, protocol, on_fault, published=published)
    wanted = knobs_to_time(cells, protocol)
    return any(has_to_be_timed(cell, taken, wanted, folder) for cell in cells)


def lost_model(cell: PlannedCell, folder: RunFolder) -> str | None:
    """Describe what is wrong with the trained model of a cell, which only timing needs; None if nothing is."""
    return model_fault(folder.model(cell.key), cell.kind.model_file)


def timed_knobs(records: Iterable[BaseRecord], protocol: TimingSpec) -> dict[str, list[float]]:
    """Choose the knobs to time of the finished cells of one (task, backbone, seed).

    First come the two knobs whose mixture meets a budget, the middle budget before the others; the cells of a grid are
    one curve. Operating points follow, the cheapest first, up to ``protocol.points_per_cell`` knobs a cell. Cells that
    cannot run live have operating points alone.
    """
    found, at_most = list(records), protocol.points_per_cell
    wanted: dict[str, list[float]] = {}
    for key, knob in _mixed_knobs(found):
        wanted.setdefault(key, []).append(knob)
    for record in found:
        points = [point.knob for point in record.timed_points(at_most)]
        wanted[record.key] = list(dict.fromkeys([*wanted.get(record.key, []), *points]))[:at_most]
    return wanted


def _mixed_knobs(records: Sequence[BaseRecord]) -> Iterator[tuple[str, float]]:
    """Yield (key of the cell, knob) on both sides of every budget, curve by curve."""
    by_label = attrgetter("label")
    for _, of_curve in groupby(sorted(records, key=by_label), key=by_label):
        knobs = [(record, knob) for record in of_curve if record.timed_points(1) for knob in _candidates(record)]
        layers, quality = [knob.layers for _, knob in knobs], [knob.quality for _, knob in knobs]
        for speedup in _middle_first(knobs[0][0].compared_at) if knobs else ():
            mixture = mixture_at(knobs[0][0].num_layers / speedup, layers, quality)
            for record, knob in (knobs[mixture.first], knobs[mixture.second]):
                yield record.key, knob.value


class _Knob(NamedTuple):
    """A knob that a mixture may use, with its layers and its score on the rows that choose knobs."""

    value: float
    layers: float
    quality: float


def _candidates(record: BaseRecord) -> list[_Knob]:
    """Return the knobs of a cell that mixtures at equal cost may use; in decoding the texts choose among them.

    Empty for decoding records without reference losses, which predate mixtures.
    """
    if isinstance(record, GenerationRecord):
        if all(point.references is None for point in record.operating_points):
            return []
        return [
            _Knob(point.knob, point.validation.average_layers, point.scores[record.metric].value)
            for point in record.operating_points
        ]
    if not isinstance(record, CellRecord):
        return []
    hull = [record.curve_validation[point.place] for point in record.hull]
    return [_Knob(point.knob, point.average_layers, point.scores[record.metric]) for point in hull]


def _middle_first(speedups: Speedups) -> Speedups:
    first, middle, last = speedups
    return middle, first, last
