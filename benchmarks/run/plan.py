"""Plan a run: which of its cells are done, failed, refused or missing, and which are to be timed.

Nothing is computed, and torch is not loaded. Timed are the knobs that tables mix at their budgets.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.kinds import Inputs
from benchmarks.measure.environment import now
from benchmarks.measure.knobs import around_budgets
from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group, group_name
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.folders import (
    HASHES_FILE,
    RECORD_FILE,
    Fault,
    RunFolder,
    frame_file,
    read_cell,
    read_failure,
    read_timings,
)
from benchmarks.store.frames import read_frame
from benchmarks.store.hashes import file_fault
from benchmarks.store.keys import stale_reason, timing_key
from benchmarks.store.records import AnyRecord, FailureRecord, KeyParts, TimingRecord
from benchmarks.store.results_folder import StoredResults
from consistentee.errors import UserError
from consistentee.methods.method import get_method

STATES = {
    "done": "done",
    "to run": "to run",
    "refused": "not defined for their task",
    "failed": "failed before (--retry-failed tries them again)",
}
"""The states of a cell, in words."""
Knobs = Mapping[str, Sequence[float]]
"""Key of a cell -> its knobs that are timed."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a run.

    Attributes:
        record: its result, if it is done.
        failure: the error, if it ran and failed, or if its method is not defined for the task.
        published: the results that have it, if the run's folder lacks it.
    """

    spec: BaseCellSpec
    parts: KeyParts
    record: AnyRecord | None = None
    failure: FailureRecord | None = None
    published: StoredResults | None = None

    @property
    def key(self) -> str:
        return self.parts.key

    @property
    def folder(self) -> str:
        return self.spec.folder.as_posix()

    @property
    def state(self) -> str:
        """How far the cell is: a key of :data:`STATES`."""
        if self.failure:
            return "refused" if self.failure.refused else "failed"
        return "done" if self.record else "to run"

    @property
    def is_missing(self) -> bool:
        return self.state == "to run"

    def curve(self, run: RunFolder) -> pd.DataFrame:
        """Read the curve of a finished cell. Raises UserError if it cannot be read."""
        if self.published:
            return self.published.frame_of(self.folder, "curve")
        return read_frame(run.cell(self.spec) / frame_file("curve"))


@dataclass(frozen=True)
class Planner:
    """Reads from a run's folder and from published results how far the cells and timings of a suite are.

    Nothing is changed there, except by ``on_fault``, which is called with every damaged or stale file: its cell counts
    as missing. The first options are those of :func:`benchmarks.run.sweep.run_suite`.
    """

    suite: BaseSuite
    filters: Filters
    fresh: bool
    retry_failed: bool
    train: bool
    run: RunFolder
    inputs: Inputs
    published: StoredResults | None
    on_fault: Callable[[Fault], None]

    def plan(self) -> list[PlannedCell]:
        """Read the state of every cell of the run's part of the suite.

        Raises UserError if a name or parameter is unknown, or data or a backbone cannot be found.
        """
        specs = expand(self.suite, self.filters)
        for fault in self._cells_of_other_parameters(specs):
            self.on_fault(fault)
        planned = [self._refused_if_undefined(self._state_of(spec, inside=True)) for spec in specs]
        return [cell for cell in planned if self.train or not cell.is_missing]

    def finished_outside(self) -> list[PlannedCell]:
        """Return the finished cells of other methods than the run's, on its tasks: they are timed with the others."""
        inside = expand(self.suite, self.filters)
        others = expand(self.suite, replace(self.filters, methods=None))
        return [cell for spec in others if spec not in inside and (cell := self._state_of(spec, inside=False)).record]

    def _state_of(self, spec: BaseCellSpec, *, inside: bool) -> PlannedCell:
        """Read the state of a cell. A stale one is set aside outside the run's work, too: tables compare them all."""
        parts, place = self.inputs.parts(spec), self.run.cell(spec)
        if inside and self.fresh:
            return PlannedCell(spec, parts)
        record, fault = read_cell(place, parts)
        published = None
        if record is None and self.published:
            found = self.published.cells.get(spec.folder.as_posix())
            if found and not stale_reason(found.key_parts, parts):
                record, published = found, self.published
        if fault:
            self.on_fault(fault)
        failure = None if record else read_failure(place, parts.key)
        if failure and not failure.refused and (failure.may_pass or (inside and self.retry_failed)):
            failure = None
        return PlannedCell(spec, parts, record, failure, published)

    def _cells_of_other_parameters(self, specs: Iterable[BaseCellSpec]) -> Iterator[Fault]:
        """Yield finished cells whose parameters the suite no longer lists under their label.

        Tables would put the old and the new parameters into one curve.
        """
        planned = {self.run.cell(spec) for spec in specs}
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

    @property
    def timing_key(self) -> str:
        """The key of timings by the suite's protocol."""
        return timing_key(self.suite.timing, self.suite.kind)

    def timings_of(self, group: Group) -> list[TimingRecord]:
        """Return the timings of a group by the suite's protocol, those that are only published included."""
        found, faults = read_timings(self.run.timing(*group))
        for fault in faults:
            self.on_fault(fault)
        taken = [*found, *self.only_published(group).values()]
        return [timing for timing in taken if timing.key == self.timing_key]

    def only_published(self, group: Group) -> dict[str, TimingRecord]:
        """Return the published timings of a group that the run's folder lacks, by their files."""
        run, published = self.run, self.published
        return {
            file: timing
            for file, timing in (published.timings if published else {}).items()
            if (run.timings / file).parent == run.timing(*group) and not (run.timings / file).exists()
        }

    def to_time(self, cells: Sequence[PlannedCell]) -> tuple[Knobs, list[PlannedCell], list[str]]:
        """Compare the knobs to time of the cells of a group with those that have times.

        Times at other knobs are enough where the model is gone.

        Returns:
            The knobs of every finished cell that are to be timed; the cells with a knob that has no times, whose
            trained model is there; and a line for people if cells without any times have no model, or a damaged one.
        """
        knobs = knobs_to_time((cell.record, cell.curve(self.run)) for cell in cells if cell.record)
        timed: dict[str, set[float | None]] = {}
        for one in (one for timing in self.timings_of(cells[0].spec.group) for one in timing.timed):
            timed.setdefault(one.cell_key, set()).add(one.knob)
        untimed = [cell for cell in cells if not timed.get(cell.key, set()).issuperset(knobs.get(cell.key, ()))]
        due = [cell for cell in untimed if self.has_model(cell)]
        known = {*timed, *(cell.key for cell in due)}
        lost = dict.fromkeys(cell.spec.label for cell in untimed if cell.key not in known)
        group = f"{group_name(cells[0].spec.group)}: {', '.join(lost)}"
        remedy = "not timed, because their trained models are damaged or gone; --fresh trains them again"
        return knobs, due, [f"{group}: {remedy}"] if lost else []

    def has_model(self, cell: PlannedCell) -> bool:
        """Check whether the trained model of a cell, which only timing needs, exists and is whole."""
        return file_fault(self.run.model(cell.key) / HASHES_FILE, sealed=True) is None

    def stale_lines(self, planned: Iterable[PlannedCell]) -> list[str]:
        """List why published cells are not used, one line for each reason: a new recipe makes many cells stale."""
        names: dict[str, list[str]] = {}
        for cell in planned:
            found = self.published.cells.get(cell.folder) if self.published and not cell.record else None
            if found and (reason := stale_reason(found.key_parts, cell.parts)):
                names.setdefault(reason, []).append(cell.spec.name)
        return [
            f"{first}{f' and {len(others)} more' if others else ''}: published, but {reason}"
            for reason, (first, *others) in names.items()
        ]


def knobs_to_time(cells: Iterable[tuple[AnyRecord, pd.DataFrame]]) -> dict[str, list[float]]:
    """Choose the knobs to time of finished cells of one (task, backbone, seed), given as record and curve.

    They are the neighbours of the budgets on the curve of the test rows. Cells of a label that have one knob each are
    one curve together. Full depth is the stock model's, and rules that cannot run live have no times.
    """
    curves: dict[tuple[str, str], list[pd.DataFrame]] = {}
    found: dict[str, list[float]] = {}
    for record, curve in cells:
        own = record.key if curve["knob"].count() > 1 else ""
        found[record.key] = []
        if record.kind == "generation" or ("live_rows" in curve and curve["live_rows"].any()):
            points = curve[["knob", "layers"]].dropna(subset="layers")
            points = points.assign(key=record.key, num_layers=record.num_layers, kind=record.kind)
            curves.setdefault((record.label, own), []).append(points)
    for points in map(pd.concat, curves.values()):
        first = points.iloc[0]
        mixed = points.iloc[around_budgets(points["layers"], first["num_layers"], first["kind"])].dropna()
        if mixed.empty:  # drafts that cost more layers than full depth may still be faster
            mixed = points.dropna().nsmallest(1, "layers")
        for key, knob in mixed[["key", "knob"]].itertuples(index=False):
            found[key].append(float(knob))
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
        groups.setdefault(cell.spec.group, []).append(cell)
    return groups
