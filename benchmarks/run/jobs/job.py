"""What a run has computed: one cell, or the timing of one group. A job is idempotent, and its result is on disk."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.kinds.kind import kind_named
from benchmarks.run.planning.plan import Inputs, PlannedCell
from benchmarks.run.planning.timed_knobs import TimedKnobs
from benchmarks.specs.base import BaseCellSpec, Group, TimingSpec, display_name
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.folders import RunFolder, read_cell, read_failure, read_timing
from benchmarks.store.keys import differences, timing_key
from benchmarks.store.records import FailureRecord, KeyParts
from consistentee.errors import UserError
from consistentee.files import PARTIAL


@dataclass(frozen=True)
class Surroundings:
    """What all jobs of a run have in common.

    Attributes:
        directory: where relative names start: the working directory of the run.
        folder: the run's folder.
        data_dir: where data files are looked for first.
        command: what the user typed.
    """

    directory: Path
    folder: RunFolder
    data_dir: Path | None
    command: str

    def inputs(self) -> Inputs:
        """Return the tasks and backbones, to be loaded again."""
        return Inputs(self.data_dir, FileHashes(self.folder.fingerprints))


@dataclass(frozen=True, eq=False)
class Job(ABC):
    """Something to compute in a process of its own.

    Attributes:
        surroundings: see there.
        replaces: time of the result that is to be replaced; any other one on disk means that the job is done.

    Class attributes:
        shares_machine: whether other work may run beside it; its time is then not compared.
    """

    shares_machine: ClassVar[bool] = True

    surroundings: Surroundings
    replaces: str | None

    @property
    @abstractmethod
    def name(self) -> str:
        """One line for people."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Key of its result."""

    @property
    @abstractmethod
    def group(self) -> Group:
        """Jobs of one group share stages: two at once may wait for each other."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """Folder of its result, and of the note if it fails."""

    @abstractmethod
    def finished_at(self) -> str | None:
        """Return when the result on disk was made, None if there is none."""

    @abstractmethod
    def compute(self) -> None:
        """Compute it, and write the result."""

    @property
    def turn(self) -> Path:
        """What a process locks while it computes this."""
        return self.surroundings.folder.turn(self.key)

    @property
    def status(self) -> Path:
        """File in which its process says how far it has come; gone when it ends, and no loss."""
        return self.turn.with_name(f".{self.key}.status{PARTIAL}")

    def is_done(self) -> bool:
        """Say whether the result is on disk, from this run or from a worker that outlived an earlier one."""
        found = self.finished_at()
        return found is not None and found != self.replaces

    def failure(self) -> FailureRecord | None:
        """Return the note on disk that says why it failed."""
        return read_failure(self.place, self.key)


@dataclass(frozen=True, eq=False)
class CellJob(Job):
    """One cell."""

    spec: BaseCellSpec
    parts: KeyParts

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def key(self) -> str:
        return self.parts.key

    @property
    def group(self) -> Group:
        return self.spec.group

    @property
    def place(self) -> Path:
        return self.surroundings.folder.cell(self.spec)

    def finished_at(self) -> str | None:
        record, _ = read_cell(self.place, self.parts, kind_named(self.spec.kind).record)
        return record.finished_at if record else None

    def compute(self) -> None:
        """Run the cell. Raises UserError if it is no longer the one that was planned."""
        from benchmarks.run.jobs.cell import run_cell

        inputs = self.surroundings.inputs()
        changed = differences(self.parts, inputs.parts(self.spec))
        if changed:
            raise UserError(f"changed since the run began, run it again: {'; '.join(changed)}")
        rows = inputs.rows(self.spec)
        run_cell(self.spec, self.parts, rows, self.surroundings.folder, command=self.surroundings.command)


@dataclass(frozen=True, eq=False)
class TimingJob(Job):
    """The timing of one group: cells that are done, with their models on disk, and which of their knobs are timed."""

    shares_machine: ClassVar[bool] = False

    cells: tuple[PlannedCell, ...]
    knobs: TimedKnobs
    protocol: TimingSpec

    @property
    def name(self) -> str:
        points = sum(len(self.knobs[cell.key]) for cell in self.cells)
        group = " · ".join(display_name(str(part)) for part in self.group)
        return f"timing {group}: {points} knobs and the stock model"

    @property
    def key(self) -> str:
        return timing_key(self.protocol, self.cells[0].spec.kind)

    @property
    def group(self) -> Group:
        return self.cells[0].group

    @property
    def place(self) -> Path:
        return self.surroundings.folder.timing(*self.group)

    def finished_at(self) -> str | None:
        timing, _ = read_timing(self.place, self.cells[0].kind.timing)
        return timing.finished_at if timing else None

    def compute(self) -> None:
        from benchmarks.run.jobs.timing import run_timing

        rows = self.surroundings.inputs().rows(self.cells[0].spec)
        folder, command = self.surroundings.folder, self.surroundings.command
        run_timing(self.cells, self.knobs, rows, self.protocol, folder, command=command)
