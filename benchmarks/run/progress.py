"""What a run shows while it works: a table that lives on a terminal, lines anywhere else."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.run.jobs import Job


class RunProgress:
    """Says what is done, running, failed and left, for jobs of one kind. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._failed = 0
        self._started = time.monotonic()
        self._running: dict[Job, tuple[int, float, TaskID]] = {}
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """Show that a job runs."""
        number = self._done + len(self._running) + 1
        title = f"[{number}/{self._total}] {job.name}"
        if not self._is_live:
            self._print(f"{title}{f' ({left})' if (left := self._time_left()) else ''}")
        self._running[job] = (number, time.monotonic(), self._bars.add_task(escape(title)))
        self._summarise()

    def ended(self, job: Job, *lines: str, failed: bool = False) -> None:
        """Show how a job ended, in one line or more."""
        number, started, bar = self._running.pop(job)
        self._bars.remove_task(bar)
        self._done += 1
        self._failed += failed
        seconds = f"{time.monotonic() - started:.0f} s"
        first, *others = lines or ("done",)
        title = f"[{number}/{self._total}] {job.name}: " if self._is_live else f"[{number}/{self._total}]   "
        self._print(f"{title}{first}, {seconds}")
        for line in others:
            self._print(f"    {line}")
        self._summarise()

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
