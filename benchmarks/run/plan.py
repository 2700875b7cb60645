"""Plan a run: which of its cells are done, failed, refused or missing. Nothing is computed, and torch is not loaded."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.kinds import Inputs
from benchmarks.measure.environment import now
from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.folders import RECORD_FILE, Fault, RunFolder, frame_file, read_cell, read_failure
from benchmarks.store.frames import read_frame
from benchmarks.store.keys import stale_reason
from benchmarks.store.records import AnyRecord, FailureRecord, KeyParts
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
    """Reads from a run's folder and from published results how far the cells of a suite are.

    Nothing is changed there, except by ``on_fault``, which is called with every damaged or stale file: its cell counts
    as missing.
    """

    suite: BaseSuite
    work: Work
    run: RunFolder
    inputs: Inputs
    published: StoredResults | None
    on_fault: Callable[[Fault], None]

    def plan(self) -> list[PlannedCell]:
        """Read the state of every cell of the run's part of the suite.

        Raises UserError if a name or parameter is unknown, or data or a backbone cannot be found.
        """
        specs = expand(self.suite, self.work.filters)
        for fault in self._cells_of_other_parameters(specs):
            self.on_fault(fault)
        planned = [self._refused_if_undefined(self._state_of(spec, inside=True)) for spec in specs]
        return [cell for cell in planned if self.work.train or not cell.is_missing]

    def finished_outside(self) -> list[PlannedCell]:
        """Return the finished cells of other methods than the run's, on its tasks: they are timed with the others."""
        inside = expand(self.suite, self.work.filters)
        others = expand(self.suite, replace(self.work.filters, methods=None))
        return [cell for spec in others if spec not in inside and (cell := self._state_of(spec, inside=False)).record]

    def _state_of(self, spec: BaseCellSpec, *, inside: bool) -> PlannedCell:
        """Read the state of a cell. A stale one is set aside outside the run's work, too: tables compare them all."""
        parts, place = self.inputs.parts(spec), self.run.cell(spec)
        if inside and self.work.fresh:
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
        if failure and not failure.refused and (failure.may_pass or (inside and self.work.retry_failed)):
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


def summary(suite: BaseSuite, planned: Sequence[PlannedCell]) -> str:
    """Summarise in one line how many cells of a suite are in which state."""
    counts = Counter(cell.state for cell in planned)
    parts = [f"{counts[state]} {words}" for state, words in STATES.items() if counts[state] or state == words]
    return f"suite {suite.name}, cells: {', '.join(parts)}"


def groups_of(cells: Iterable[PlannedCell]) -> dict[Group, list[PlannedCell]]:
    """Group cells by task, backbone and seed."""
    groups: dict[Group, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(cell.spec.group, []).append(cell)
    return groups
