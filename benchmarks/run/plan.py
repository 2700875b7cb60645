"""Plan a run: which cells are done, failed, refused or missing, which timings are due, and which knobs they time.

Never loads torch.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import AnyKind, CellRows
from benchmarks.run.environment import now
from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group, TimingSpec, group_name, short_name
from benchmarks.specs.knob_choice import mixture_at
from benchmarks.specs.suites import Filters, expand
from benchmarks.specs.targets import SPEEDUPS
from benchmarks.store.folders import HASHES_FILE, RECORD_FILE, Fault, RunFolder, read_cell, read_failure, read_timings
from benchmarks.store.hashes import file_fault
from benchmarks.store.keys import key_parts, stale_reason, timing_key
from benchmarks.store.records import BaseRecord, FailureRecord, KeyParts
from benchmarks.store.stored_results import StoredCell, kind_of_results, open_results
from benchmarks.store.timings import TimingRecord
from consistentee.errors import UserError
from consistentee.methods.method import get_method

STATES = {
    "done": "done",
    "to run": "to run",
    "refused": "not defined for their task",
    "failed": "failed before (--retry-failed tries them again)",
}
"""The states of a cell, in words."""

_SHOWN_IN_MINUTES_FROM = 90.0  # seconds

TimedKnobs = Mapping[str, Sequence[float]]
"""Key of a cell -> its knobs that are timed."""


@dataclass(frozen=True)
class Work:
    """Options of a run: filters, and whether it trains and takes times; see :func:`benchmarks.run.sweep.run_suite`."""

    filters: Filters
    fresh: bool
    retry_failed: bool
    train: bool
    times: bool


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a run.

    Attributes:
        record: its result, if it is done.
        failure: the error, if it ran and failed, or if its method is not defined for the task.
        stored: where it is published, if the run's folder lacks it.
    """

    spec: BaseCellSpec
    parts: KeyParts
    record: BaseRecord | None = None
    failure: FailureRecord | None = None
    stored: StoredCell | None = None

    @property
    def key(self) -> str:
        return self.parts.key

    @property
    def group(self) -> Group:
        return self.spec.group

    @property
    def kind(self) -> AnyKind:
        return kind_named(self.spec.kind)

    @property
    def state(self) -> str:
        """How far the cell is: a key of :data:`STATES`."""
        if self.failure:
            return "refused" if self.failure.refused else "failed"
        return "done" if self.record else "to run"

    @property
    def is_missing(self) -> bool:
        return self.state == "to run"


class Inputs:
    """The tasks and backbones of a run, each loaded or identified once."""

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir
        self._rows: dict[Hashable, CellRows[Any]] = {}
        self._identity = cache(lambda kind, backbone: kind_named(kind).backbone_identity(backbone))

    def rows(self, spec: BaseCellSpec) -> CellRows[Any]:
        if spec.rows not in self._rows:
            self._rows[spec.rows] = kind_named(spec.kind).load_rows(spec, self._data_dir)
        return self._rows[spec.rows]

    def parts(self, spec: BaseCellSpec) -> KeyParts:
        """Collect everything that a cell's results depend on.

        A parameter whose name ends in ``_backbone`` names a backbone: the hashes of its files count too. Raises
        UserError if the data or a backbone cannot be found.
        """
        backbone = self._identity(spec.kind, spec.backbone)
        others = {
            name: self._identity(spec.kind, value)
            for name, value in spec.parameters.items()
            if name.endswith("_backbone") and isinstance(value, str)
        }
        return key_parts(spec, self.rows(spec).fingerprint, {**backbone, **others})


@dataclass(frozen=True)
class Published:
    """Published results of a suite, from which a run starts: cells by their folder in a run, timings by their file.

    They are never changed here. ``root`` is their folder, and None if there are none.
    """

    root: Path | None = None
    cells: dict[str, StoredCell] = field(default_factory=dict)
    timings: dict[str, TimingRecord] = field(default_factory=dict)

    @classmethod
    def find(cls, suite: BaseSuite, root: Path | None, out: Path) -> "Published":
        """Read the published results of a suite: those in ``root``, or in ``results/SUITE`` unless that is ``out``.

        Raises UserError if ``root`` holds no results, or if they cannot be read or are of another kind.
        """
        place = Path("results") / suite.name if root is None else root
        if place.resolve() == out.resolve():
            return cls()
        if checked_kind(suite, place, "rename one of them") is None:
            if root is None:
                return cls()
            raise UserError(f"{place} holds no results, published or not; give another --published")
        results = open_results(place)
        return cls(place, {cell.folder: cell for cell in results.cells}, results.timings)

    def cell(self, spec: BaseCellSpec, wanted: KeyParts) -> StoredCell | None:
        found = self.cells.get(spec.folder.as_posix())
        return found if found is not None and not stale_reason(found.record.key_parts, wanted) else None

    def staleness_lines(self, planned: Iterable[PlannedCell]) -> list[str]:
        """List why published cells are not used, one line for each reason: a new recipe makes many cells stale."""
        names: dict[str, list[str]] = {}
        for cell in planned:
            found = self.cells.get(cell.spec.folder.as_posix())
            if found is None or cell.record is not None:
                continue
            if reason := stale_reason(found.record.key_parts, cell.parts):
                names.setdefault(reason, []).append(cell.spec.name)
        return [
            f"{first}{f' and {len(others)} more' if others else ''}: published, but {reason}"
            for reason, (first, *others) in names.items()
        ]


@dataclass(frozen=True)
class Planner:
    """Reads from disk and from published results how far a suite is.

    Nothing is changed there, except by ``on_fault``, which is called with every damaged or stale file: its cell or
    timing counts as missing.
    """

    suite: BaseSuite
    folder: RunFolder
    inputs: Inputs
    on_fault: Callable[[Fault], None]
    published: Published

    def plan(self, work: Work) -> list[PlannedCell]:
        """Read the state of every cell of a part of the suite.

        Raises UserError if a name or parameter is unknown, or data or a backbone cannot be found.
        """
        specs = expand(self.suite, work.filters)
        for fault in self._cells_of_other_parameters(specs):
            self.on_fault(fault)
        planned = [self._refused_if_undefined(self._state_of(spec, work)) for spec in specs]
        return [cell for cell in planned if work.train or not cell.is_missing]

    def _state_of(self, spec: BaseCellSpec, work: Work | None = None) -> PlannedCell:
        """Read the state of a cell; one outside the run's work keeps its place, unless a published one takes it."""
        parts, place = self.inputs.parts(spec), self.folder.cell(spec)
        if work and work.fresh:
            return PlannedCell(spec, parts)
        record, fault = read_cell(place, parts, kind_named(spec.kind).record)
        stored = None if record else self.published.cell(spec, parts)
        if fault and (stored or work):
            self.on_fault(fault)
        if stored:
            record = stored.record
        failure = None if record else read_failure(place, parts.key)
        if failure and not failure.refused and (failure.may_pass or (work and work.retry_failed)):
            failure = None
        return PlannedCell(spec, parts, record, failure, stored)

    def _cells_of_other_parameters(self, specs: Iterable[BaseCellSpec]) -> Iterator[Fault]:
        """Yield finished cells whose parameters the suite no longer lists under their label.

        Tables would put the old and the new parameters into one curve.
        """
        planned = {self.folder.cell(spec) for spec in specs}
        for of_label, seed in sorted({(place.parents[1], place.name) for place in planned}):
            for place in sorted(of_label.glob(f"*/{seed}")):
                if place not in planned and (place / RECORD_FILE).is_file():
                    reason = "the suite has other parameters under this label"
                    yield Fault(place / RECORD_FILE, "stale", reason)

    def _refused_if_undefined(self, cell: PlannedCell) -> PlannedCell:
        """Build the method of a missing cell: a wrong name or parameter ends the run before any training."""
        if not cell.is_missing:
            return cell
        method = get_method(cell.spec.method, **cell.spec.parameters)
        try:
            for task in self.inputs.rows(cell.spec).tasks:
                method.check_task(task)
        except UserError as error:
            failure = FailureRecord(key=cell.key, error=str(error), refused=True, traceback="", failed_at=now())
            return replace(cell, failure=failure)
        return cell

    def finished(self, specs: Iterable[BaseCellSpec]) -> list[PlannedCell]:
        """Return the finished cells among those outside a run's filter, which are timed with the others."""
        return [cell for spec in specs if (cell := self._state_of(spec)).record]

    def timings_of(self, group: Group) -> list[TimingRecord]:
        """Return the timings of a group taken by the suite's protocol."""
        found, faults = read_timings(self.folder.timing(*group))
        for fault in faults:
            self.on_fault(fault)
        key = timing_key(self.suite.timing, self.suite.kind)
        return [timing for timing in [*found, *self.missing_timings(group).values()] if timing.key == key]

    def missing_timings(self, group: Group) -> dict[Path, TimingRecord]:
        """Return the published timings of a group that the run's folder lacks, by the files that they would have."""
        files = {self.folder.timings / file: timing for file, timing in self.published.timings.items()}
        place = self.folder.timing(*group)
        return {file: timing for file, timing in files.items() if file.parent == place and not file.exists()}

    def untimed(self, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
        """Return the cells of a group to be timed: some knob has no times and the model is there, or no knob has any.

        Without the model, times at knobs chosen by older rules are enough.
        """
        wanted = timed_knobs([cell.record for cell in cells if cell.record], self.suite.timing)
        taken: dict[str, set[float | None]] = {}
        for timing in self.timings_of(cells[0].group):
            for contender in timing.contenders:
                taken.setdefault(contender.cell_key, set()).add(contender.knob)
        return [
            cell
            for cell in cells
            if not taken.get(cell.key, set()).issuperset(wanted.get(cell.key, ()))
            and (cell.key not in taken or self.has_model(cell))
        ]

    def is_timing_due(self, cells: Sequence[PlannedCell]) -> bool:
        """Check whether a group has to be timed, now or after its missing cells."""
        return any(cell.is_missing for cell in cells) or any(map(self.has_model, self.untimed(cells)))

    def untimed_line(self, cells: Sequence[PlannedCell]) -> str | None:
        """Name the cells of a group that cannot be timed; None if all have times or models."""
        lost = [cell.spec.label for cell in self.untimed(cells) if not self.has_model(cell)]
        remedy = "not timed, because their trained models are damaged or gone; --fresh trains them again"
        return f"{group_name(cells[0].group)}: {', '.join(dict.fromkeys(lost))}: {remedy}" if lost else None

    def has_model(self, cell: PlannedCell) -> bool:
        """Check whether the trained model of a cell, which only timing needs, exists and is whole."""
        return file_fault(self.folder.model(cell.key) / HASHES_FILE, sealed=True) is None


def checked_kind(suite: BaseSuite, place: Path, remedy: str) -> str | None:
    """Return the kind of the results in a folder; None if it holds none. Raises UserError if it is not the suite's."""
    found = kind_of_results(place)
    if found not in (None, suite.kind):
        raise UserError(f"{place} holds results of {found}, suite {suite.name!r} is {suite.kind}; {remedy}")
    return found


def summary(suite: BaseSuite, planned: Sequence[PlannedCell]) -> str:
    """Summarise in one line how many cells of a suite are in which state."""
    counts = Counter(cell.state for cell in planned)
    parts = [f"{counts[state]} {words}" for state, words in STATES.items() if counts[state] or state == words]
    return f"suite {suite.name}: {len(planned)} cells: {', '.join(parts)}"


def groups_of(cells: Iterable[PlannedCell]) -> dict[Group, list[PlannedCell]]:
    """Group cells by task, backbone and seed."""
    groups: dict[Group, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return groups


def timed_knobs(records: Sequence[BaseRecord], protocol: TimingSpec) -> dict[str, list[float]]:
    """Choose the knobs to time of the finished cells of one (task, backbone, seed).

    First come the two knobs whose mixture meets a budget, the middle budget before the others; the cells of a grid are
    one curve. Operating points follow, the cheapest first, up to ``protocol.points_per_cell`` knobs a cell. Cells that
    cannot run live have operating points alone.
    """
    at_most = protocol.points_per_cell
    wanted: dict[str, list[float]] = {}
    for key, knob in _mixed_knobs(records):
        wanted.setdefault(key, []).append(knob)
    for record in records:
        points = [point.knob for point in record.timed_points(at_most)]
        wanted[record.key] = list(dict.fromkeys([*wanted.get(record.key, []), *points]))[:at_most]
    return wanted


def _mixed_knobs(records: Sequence[BaseRecord]) -> Iterator[tuple[str, float]]:
    """Yield (key of the cell, knob) on both sides of every budget, curve by curve."""
    by_label = attrgetter("label")
    for _, of_curve in groupby(sorted(records, key=by_label), key=by_label):
        live = [record for record in of_curve if record.timed_points(1)]
        knobs = [(record.key, *knob) for record in live for knob in record.mixable_knobs()]
        if not knobs:
            continue
        _, _, layers, quality = zip(*knobs, strict=True)
        first, middle, last = SPEEDUPS[live[0].key_parts.kind]
        for speedup in (middle, first, last):
            mixture = mixture_at(live[0].num_layers / speedup, layers, quality)
            for key, knob, *_ in (knobs[mixture.first], knobs[mixture.second]):
                yield key, knob


# ---------------------------------------------------------------------------------------------- dry run


def plan_lines(planner: Planner, work: Work, workers: int) -> list[str]:
    """Describe the plan of a run in lines for people; nothing is set aside."""
    faults: list[Fault] = []
    planner = replace(planner, on_fault=faults.append)
    planned = planner.plan(work)
    missing = [cell for cell in planned if cell.is_missing]
    groups = list(groups_of(planned).values()) if work.times else []
    due = [cells for cells in groups if work.fresh or planner.is_timing_due(cells)]
    found = [*(cell.record for cell in planned), *(cell.record for cell in planner.published.cells.values())]
    records = {record.key: record for record in found if record}.values()
    trained = [((record.task, record.backbone, record.label), record.train_seconds) for record in records]
    timings = [*planner.published.timings.values()]
    timings += [timing for cells in groups for timing in planner.timings_of(cells[0].group)]
    timed = [((timing.task, timing.backbone), timing.total_seconds) for timing in timings]

    def names(cell: PlannedCell) -> tuple[str, str]:
        return short_name(cell.spec.task), short_name(cell.spec.backbone)

    return [
        *dict.fromkeys(f"{fault}: it would be set aside" for fault in faults),
        *planner.published.staleness_lines(planned),
        f"{summary(planner.suite, planned)}; results in {planner.folder.root}",
        *(f"{cell.state:8} {cell.spec.name}" for cell in planned),
        *(f"to time  {group_name(cells[0].group)}" for cells in due),
        *(line for cells in groups if (line := planner.untimed_line(cells))),
        *_estimate("training", [(*names(cell), cell.spec.label) for cell in missing], trained, workers),
        *_estimate("timing", [names(cells[0]) for cells in due], timed),
        "nothing was run or written",
    ]


def _estimate(
    what: str, wanted: Sequence[Hashable], recorded: Iterable[tuple[Hashable, float]], workers: int = 1
) -> list[str]:
    seconds: dict[Hashable, list[float]] = {}
    for name, taken in recorded:
        seconds.setdefault(name, []).append(taken)
    known = [median(seconds[name]) for name in wanted if name in seconds]
    if not wanted:
        return []
    if not known:
        return [f"{what}: no estimate, since none of it is recorded yet"]
    total = sum(known) / workers
    shown = f"{total / 60:.0f} min" if total >= _SHOWN_IN_MINUTES_FROM else f"{total:.0f} s"
    parallel = f" with {workers} workers, if they do not slow each other down" if workers > 1 else ""
    return [f"{what}: about {shown}{parallel}, from the recorded seconds of {len(known)} of {len(wanted)}"]
