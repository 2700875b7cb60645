"""Jobs of a run: one cell, or the timing of one group. A job is idempotent, and its result is on disk."""

import os
import sys
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from benchmarks.run.plan import Inputs, PlannedCell, TimedKnobs
from benchmarks.specs.base import Group, TimingSpec, display_name
from benchmarks.store.environment import now
from benchmarks.store.folders import (
    FAILURE_FILE,
    TIMING_FILE,
    RunFolder,
    parse_record,
    read_cell,
    read_failure,
    write_record,
)
from benchmarks.store.hashes import FileHashes
from benchmarks.store.keys import differences, timing_key
from benchmarks.store.records import BaseRecord, BaseTimingRecord, FailureRecord
from consistentee.errors import UserError
from consistentee.files import PARTIAL


@dataclass(frozen=True)
class RunContext:
    """Settings that all jobs of a run share.

    Attributes:
        directory: the working directory of the run; relative paths start here.
        folder: the run's folder.
        data_dir: where data files are looked for first.
        command: the command line of the run.
    """

    directory: Path
    folder: RunFolder
    data_dir: Path | None
    command: str

    def inputs(self) -> Inputs:
        """Load tasks and identify backbones again."""
        return Inputs(self.data_dir, FileHashes(self.folder.fingerprints))


@dataclass(frozen=True, eq=False)
class Job(ABC):
    """Work for a process of its own.

    Attributes:
        context: what it shares with the other jobs of the run.
        name: one line for people.
        key: key of the result.
        group: jobs of one group share stages: two at once may wait for each other.
        place: folder of the result, and of the note of a failure.
        replaces: time of the result that is to be replaced; a result with another time means that the job is done.

    Class attributes:
        shares_machine: whether other jobs may run at the same time; False where time is measured.
    """

    shares_machine: ClassVar[bool] = True

    context: RunContext
    name: str
    key: str
    group: Group
    place: Path
    replaces: str | None

    @abstractmethod
    def compute(self) -> None:
        """Compute the result and write it."""

    @abstractmethod
    def read(self) -> BaseRecord | BaseTimingRecord | None:
        """Read the result on disk; None if there is none."""

    @property
    def lock_place(self) -> Path:
        """Path that a process locks while it computes this job."""
        return self.context.folder.turn(self.key)

    @property
    def status(self) -> Path:
        """File in which the job's process writes its progress; deleted when the process ends."""
        return self.lock_place.with_name(f".{self.key}.status{PARTIAL}")

    def result(self) -> BaseRecord | BaseTimingRecord | None:
        """Return the result if it is of this run, or of a worker that outlived an earlier one."""
        found = self.read()
        return found if found is not None and found.finished_at != self.replaces else None

    def replacing(self) -> Self:
        """Return the job that replaces the result on disk."""
        found = self.read()
        return self if found is None else replace(self, replaces=found.finished_at)

    def failure(self) -> FailureRecord | None:
        """Read the note on disk on why the job failed."""
        return read_failure(self.place, self.key)

    def note_error(self, error: Exception) -> FailureRecord:
        """Write an exception and its traceback next to the result.

        A failure that an OSError caused may pass: the disk is to blame, not the method.
        """
        text = " ".join(str(error).split()) or "no message"
        sentence = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        return self.note_failure(sentence, "".join(traceback.format_exception(error)), may_pass=cause is not None)

    def note_failure(self, sentence: str, details: str = "", *, may_pass: bool = False) -> FailureRecord:
        """Write in one sentence why there is no result.

        Args:
            sentence: what went wrong.
            details: the traceback; the folders of this machine are shortened.
            may_pass: whether the next run tries once more, unless this was that try.
        """
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


@dataclass(frozen=True, eq=False)
class CellJob(Job):
    """One cell."""

    cell: PlannedCell

    @classmethod
    def of(cls, context: RunContext, cell: PlannedCell) -> "CellJob":
        """Build the job of a cell, which replaces the result on disk."""
        place = context.folder.cell(cell.spec)
        return cls(context, cell.spec.name, cell.key, cell.group, place, None, cell).replacing()

    def read(self) -> BaseRecord | None:
        return read_cell(self.place, self.cell.parts, self.cell.kind.record)[0]

    def compute(self) -> None:
        """Run the cell. Raises UserError if its key is no longer the planned one."""
        from benchmarks.run.cell import run_cell

        inputs, spec, parts = self.context.inputs(), self.cell.spec, self.cell.parts
        changed = differences(parts, inputs.parts(spec))
        if changed:
            raise UserError(f"changed since the run began, run it again: {'; '.join(changed)}")
        run_cell(spec, parts, inputs.rows(spec), self.context.folder, command=self.context.command)


@dataclass(frozen=True, eq=False)
class TimingJob(Job):
    """The timing of one group: finished cells whose models are on disk, and the knobs to time."""

    shares_machine: ClassVar[bool] = False

    cells: tuple[PlannedCell, ...]
    knobs: TimedKnobs
    protocol: TimingSpec

    @classmethod
    def of(
        cls, context: RunContext, cells: tuple[PlannedCell, ...], knobs: TimedKnobs, protocol: TimingSpec
    ) -> "TimingJob":
        """Build the job of a group of cells, which replaces the latest timing on disk."""
        group, key = cells[0].group, timing_key(protocol, cells[0].spec.kind)
        points = sum(len(knobs[cell.key]) for cell in cells)
        name = f"timing {' · '.join(display_name(str(part)) for part in group)}: {points} knobs and the stock model"
        job = cls(context, name, key, group, context.folder.timing(*group), None, cells, knobs, protocol)
        return job.replacing()

    def read(self) -> BaseTimingRecord | None:
        return parse_record(self.place / TIMING_FILE, self.cells[0].kind.timing)[0]

    def compute(self) -> None:
        from benchmarks.run.timing import run_timing

        rows = self.context.inputs().rows(self.cells[0].spec)
        run_timing(self.cells, self.knobs, rows, self.protocol, self.context.folder, command=self.context.command)
