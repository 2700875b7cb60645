"""Jobs of a run, each one cell or one timing: what they leave on disk, and how their progress is shown.

A job is idempotent, and its result is on disk. Its process writes its position into a status file at most once a
second; the run reads it. Progress updates itself on a terminal, and is lines anywhere else.
"""

import json
import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, Self, TypeAlias, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from benchmarks.measure.environment import now
from benchmarks.specs.base import Group
from benchmarks.store.folders import FAILURE_FILE, RunFolder, read_failure, write_record
from benchmarks.store.records import AnyRecord, FailureRecord, TimingRecord
from benchmarks.terminal import print_line
from consistentee.errors import UserError
from consistentee.files import PARTIAL
from consistentee.progress import Listener, Position

SECONDS_BETWEEN_LINES = 10.0
"""Between two lines about one job, where there is no terminal."""

_SECONDS_BETWEEN_READS = 1.0
_SECONDS_BETWEEN_WRITES = 1.0

ResultT = TypeVar("ResultT", bound=AnyRecord | TimingRecord)


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
        earlier, what = self.failure(), {"key": self.key, "error": sentence, "traceback": details, "failed_at": now()}
        again = may_pass and not (earlier and earlier.may_pass)
        failure = FailureRecord.model_validate({**what, "refused": False, "may_pass": again})
        write_record(self.place / FAILURE_FILE, failure)
        return failure


AnyJob: TypeAlias = Job[AnyRecord] | Job[TimingRecord]


# ---------------------------------------------------------------------------------------------- progress


def throttled(listener: Listener, seconds: float) -> Listener:
    """Return a listener that passes on the first position of every stage, and others at most once in ``seconds``."""
    stage, next_call = "", 0.0

    def listen(position: Position) -> None:
        nonlocal stage, next_call
        now = time.monotonic()
        if now >= next_call or position.stage != stage:
            stage, next_call = position.stage, now + seconds
            listener(position)

    return listen


def status_writer(path: Path) -> Listener:
    """Return a listener that writes positions into a file. One that cannot be written does not stop the work."""
    partial = path.with_name(f"{path.name}.new{PARTIAL}")  # the next run deletes those of killed processes

    def write(position: Position) -> None:
        with suppress(OSError):
            partial.write_text(json.dumps(asdict(position)), encoding="utf-8")
            partial.replace(path)

    return throttled(write, _SECONDS_BETWEEN_WRITES)


def read_status(path: Path) -> Position | None:
    """Read the last position that a job's process wrote; None if there is none yet."""
    try:
        return Position(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def in_words(position: Position) -> str:
    """Format a position as one line: ``training last-exit, step 12 of 50, 85 rows/s, 0.4 min left``."""
    parts = [position.stage]
    parts += [f"step {position.done} of {position.total}"] if position.total else []
    if position.rows and position.seconds:
        pace = position.rows / position.seconds
        parts.append(f"{pace:.0f} rows/s" if pace >= 10 else f"{pace:.1f} rows/s")
    if position.steps:
        seconds_left = position.seconds / position.steps * (position.total - position.done)
        parts.append(f"{seconds_left / 60:.1f} min left")
    return ", ".join(parts)


@dataclass
class _Running:
    title: str
    started: float
    next_line: float
    place: tuple[str, int] | None = None


class RunProgress:
    """Show how many jobs are done, running and failed, and the position of the running ones.

    A context manager: inside its block a thread reads the status files once a second.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = self._failed = 0
        self._running: dict[AnyJob, _Running] = {}
        self._changing = threading.RLock()
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._keep_reading, daemon=True)
        self._live = Status("", console=console) if console.is_terminal and total else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        if self._total:
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._total:
            self._reader.join()
        if self._live:
            self._live.stop()

    def started(self, job: AnyJob) -> None:
        with self._changing:
            title = f"[{self._done + len(self._running) + 1}/{self._total}] {job.name}"
            if not self._live:
                print_line(self._console, title)
            now = time.monotonic()
            self._running[job] = _Running(title, now, now + SECONDS_BETWEEN_LINES)

    def ended(self, job: AnyJob) -> None:
        (first, *others), failed = job.ending()
        with self._changing:
            running = self._running.pop(job)
            self._done += 1
            self._failed += failed
            head = f"{running.title}: " if self._live else f"{running.title.partition(' ')[0]}   "
            print_line(self._console, f"{head}{first}, {time.monotonic() - running.started:.0f} s")
            for line in others:
                print_line(self._console, f"    {line}")

    def update(self, now: float) -> None:
        """Show the positions of running jobs; without a terminal in a line a job every ten seconds, if it advanced."""
        with self._changing:
            failed = f", {self._failed} failed" if self._failed else ""
            lines = [f"{self._done} of {self._total} done, {len(self._running)} running{failed}"]
            for job, running in self._running.items():
                position = read_status(job.status)
                if position is None and running.place:  # the process has ended
                    continue
                position = position or Position("starting")
                lines.append(f"{running.title}, {now - running.started:.0f} s: {in_words(position)}")
                place = position.stage, position.done
                if not self._live and now >= running.next_line and place != running.place:  # else it stands still
                    running.place, running.next_line = place, now + SECONDS_BETWEEN_LINES
                    print_line(self._console, lines[-1])
            if self._live:
                self._live.update(escape("\n".join(lines)))

    def _keep_reading(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_READS):
            self.update(time.monotonic())
