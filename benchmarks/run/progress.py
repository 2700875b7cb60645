"""What a run shows while it works: a table that lives on a terminal, lines anywhere else."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.run.jobs.job import Job
from benchmarks.run.jobs.status import in_words, read_status

SECONDS_BETWEEN_LINES = 10.0
"""Of a job, where there is no terminal."""

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class _Running:
    number: int
    started: float
    next_line: float
    bar: TaskID


class RunProgress:
    """Says what is done, running, failed and left, for jobs of one kind, and how far running ones have come.

    A context manager: in its block a thread looks, once a second, at what the jobs' processes say.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._failed = 0
        self._started = time.monotonic()
        self._running: dict[Job, _Running] = {}
        self._changing = threading.RLock()
        self._ended = threading.Event()
        self._looks = threading.Thread(target=self._keep_looking, daemon=True)
        self._is_live = console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._is_live,
        )
        self._summary = self._bars.add_task("")

    def __enter__(self) -> Self:
        if self._total:
            self._bars.start()
            self._summarise()
            self._looks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._total:
            self._looks.join()
        self._bars.stop()

    def started(self, job: Job) -> None:
        """Show that a job runs."""
        with self._changing:
            number = self._done + len(self._running) + 1
            title = self._title(number, job)
            if not self._is_live:
                self._print(f"{title}{f' ({left})' if (left := self._time_left()) else ''}")
            now = time.monotonic()
            bar = self._bars.add_task(escape(title))
            self._running[job] = _Running(number, now, now + SECONDS_BETWEEN_LINES, bar)
            self._summarise()

    def ended(self, job: Job, *lines: str, failed: bool = False) -> None:
        """Show how a job ended, in one line or more."""
        with self._changing:
            running = self._running.pop(job)
            self._bars.remove_task(running.bar)
            self._done += 1
            self._failed += failed
            seconds = f"{time.monotonic() - running.started:.0f} s"
            first, *others = lines or ("done",)
            head = f"{self._title(running.number, job)}: " if self._is_live else f"[{running.number}/{self._total}]   "
            self._print(f"{head}{first}, {seconds}")
            for line in others:
                self._print(f"    {line}")
            self._summarise()

    def look(self, now: float) -> None:
        """Show how far the running jobs have come; without a terminal, of a job no more than a line in ten seconds.

        ``now``: what ``time.monotonic`` says.
        """
        with self._changing:
            for job, running in self._running.items():
                if not self._is_live and now < running.next_line:
                    continue
                position = read_status(job.status)
                said = "starting" if position is None else in_words(position)
                title = self._title(running.number, job)
                if self._is_live:
                    self._bars.update(running.bar, description=escape(f"{title}: {said}"), refresh=True)
                else:
                    running.next_line = now + SECONDS_BETWEEN_LINES
                    self._print(f"{title}, {now - running.started:.0f} s: {said}")

    def _keep_looking(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            self.look(time.monotonic())

    def _title(self, number: int, job: Job) -> str:
        return f"[{number}/{self._total}] {job.name}"

    def _print(self, line: str) -> None:
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def _summarise(self) -> None:
        parts = [f"{self._done} of {self._total} done", f"{len(self._running)} running"]
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += [left] if (left := self._time_left()) else []
        self._bars.update(self._summary, description=", ".join(parts))

    def _time_left(self) -> str:
        """Guess from the pace so far, which several workers set together."""
        if not self._done:
            return ""
        minutes = (time.monotonic() - self._started) / self._done * (self._total - self._done) / 60
        return f"about {max(1, round(minutes))} min left"
