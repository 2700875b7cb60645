"""Jobs of a run: one cell, or the timing of one group. A job is idempotent, and its result is on disk."""

import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from benchmarks.run.environment import now
from benchmarks.run.plan import Inputs, PlannedCell, TimedKnobs
from benchmarks.specs.base import Group, TimingSpec, group_name
from benchmarks.store.folders import (
    FAILURE_FILE,
    TIMING_FILE,
    RunFolder,
    parse_record,
    read_cell,
    read_failure,
    write_record,
)
from benchmarks.store.keys import stale_reason, timing_key
from benchmarks.store.records import BaseRecord, FailureRecord
from benchmarks.store.timings import TimingRecord
from consistentee.errors import UserError
from consistentee.files import PARTIAL

ResultT = TypeVar("ResultT", bound=BaseRecord | TimingRecord)


class RunContext(NamedTuple):
    """Settings that all jobs of a run share; relative paths start in ``directory``."""

    directory: Path
    folder: RunFolder
    data_dir: Path | None
    command: str


class Job(ABC, Generic[ResultT]):
    """Work for a process of its own.

    The result on disk when the job is made is the one to replace. Any other result means that the job is done, by this
    run or by a worker of an earlier one.

    Jobs of one ``group`` share stages: two at once may wait for each other. ``place`` is the folder of the result, and
    of the note of a failure.
    """

    shares_machine: ClassVar[bool] = True
    """Whether other jobs may run at the same time; not where time is measured."""

    def __init__(self, context: RunContext, name: str, key: str, group: Group, place: Path) -> None:
        self.context = context
        self.name = name
        self.key = key
        self.group = group
        self.place = place
        old = self.read()
        self._replaces = None if old is None else old.finished_at

    @abstractmethod
    def compute(self) -> None:
        """Compute the result and write it."""

    @abstractmethod
    def read(self) -> ResultT | None:
        """Read the result on disk; None if there is none."""

    @property
    def lock_place(self) -> Path:
        """Path that a process locks while it computes this job."""
        return self.context.folder.root / "artifacts" / "turns" / self.key

    @property
    def status(self) -> Path:
        """File in which the job's process writes its progress; deleted when the process ends."""
        return self.lock_place.with_name(f".{self.key}.status{PARTIAL}")

    def result(self) -> ResultT | None:
        """Return the result, unless it is the one to replace."""
        found = self.read()
        return None if found is None or found.finished_at == self._replaces else found

    def failure(self) -> FailureRecord | None:
        return read_failure(self.place, self.key)

    def ending(self) -> tuple[list[str], bool]:
        """Describe in lines how the job has ended, and return whether it failed, which is noted if it is not yet."""
        found = self.result()
        if found is None:
            failure = self.failure() or self.note_failure("its process wrote neither a record nor a failure")
            return [f"failed: {failure.error}"], True
        return self.describe(found), False

    def describe(self, _found: ResultT) -> list[str]:
        return ["done"]

    def note_failure(self, error: Exception | str, details: str = "", *, may_pass: bool = False) -> FailureRecord:
        """Write in one sentence why there is no result, with a traceback in which this machine's folders are shortened.

        If it ``may_pass``, the next run tries once more, unless this was that try. So it is after an OSError: the fault
        is the disk's, not the method's.
        """
        sentence = str(error)
        if isinstance(error, Exception):
            text = " ".join(str(error).split()) or "no message"
            sentence = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
            details = "".join(traceback.format_exception(error))
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            may_pass = cause is not None
        for folder, shown in ((Path.cwd(), "."), (Path(sys.prefix), "<python>"), (Path.home(), "~")):
            details = details.replace(f"{folder}{os.sep}", f"{shown}{os.sep}")
        earlier = self.failure()
        failure = FailureRecord(
            key=self.key,
            error=sentence,
            refused=False,
            may_pass=may_pass and not (earlier and earlier.may_pass),
            traceback=details,
            failed_at=now(),
        )
        write_record(self.place / FAILURE_FILE, failure)
        return failure


class CellJob(Job[BaseRecord]):
    """One cell."""

    def __init__(self, context: RunContext, cell: PlannedCell) -> None:
        self.cell = cell
        super().__init__(context, cell.spec.name, cell.key, cell.group, context.folder.cell(cell.spec))

    def read(self) -> BaseRecord | None:
        return read_cell(self.place, self.cell.parts, self.cell.kind.record)[0]

    def compute(self) -> None:
        """Run the cell. Raises UserError if its key is no longer the planned one."""
        from benchmarks.run.cell import run_cell

        inputs, spec, parts = Inputs(self.context.data_dir), self.cell.spec, self.cell.parts
        if changed := stale_reason(parts, inputs.parts(spec)):
            raise UserError(f"changed since the run began, run it again: {changed}")
        run_cell(spec, parts, inputs.rows(spec), self.context.folder, command=self.context.command)

    def describe(self, found: BaseRecord) -> list[str]:
        from benchmarks.run.end_screen import reached

        return [reached(self.context.folder.root, self.cell.spec, found), *found.warnings()]


class TimingJob(Job[TimingRecord]):
    """The timing of one group: finished cells whose models are on disk, and the knobs to time."""

    shares_machine: ClassVar[bool] = False

    def __init__(
        self, context: RunContext, cells: Sequence[PlannedCell], knobs: TimedKnobs, protocol: TimingSpec
    ) -> None:
        self.cells = cells
        self.knobs = knobs
        self.protocol = protocol
        group, key = cells[0].group, timing_key(protocol, cells[0].spec.kind)
        points = sum(len(knobs[cell.key]) for cell in cells)
        name = f"timing {group_name(group)}: {points} knobs and the stock model"
        super().__init__(context, name, key, group, context.folder.timing(*group))

    def read(self) -> TimingRecord | None:
        return parse_record(self.place / TIMING_FILE, TimingRecord)[0]

    def compute(self) -> None:
        from benchmarks.run.timing import run_timing

        rows = Inputs(self.context.data_dir).rows(self.cells[0].spec)
        run_timing(self.cells, self.knobs, rows, self.protocol, self.context.folder, command=self.context.command)


AnyJob: TypeAlias = Job[BaseRecord] | Job[TimingRecord]
