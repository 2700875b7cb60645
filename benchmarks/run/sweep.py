"""Run a suite: compute the missing cells, each in its own process, then time them; finished results are kept."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from benchmarks.run.jobs import CellJob, RunContext, TimingJob
from benchmarks.run.plan import (
    Inputs,
    PlannedCell,
    Planner,
    Published,
    groups_of,
    refuse_another_kind,
    summary,
    timed_knobs,
)
from benchmarks.run.pool import Schedule
from benchmarks.run.progress import RunProgress
from benchmarks.specs.base import BaseSuite, Group
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.environment import command_line, describe_conditions, describe_environment
from benchmarks.store.folders import (
    ENVIRONMENT_FILE,
    FAILURE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    SUITE_FILE,
    TIMING_FILE,
    VALIDATION_FILE,
    Fault,
    RunFolder,
    keep_timing,
    only_run,
    parse_record,
    read_failure,
    write_record,
    write_rows,
)
from benchmarks.store.hashes import FileHashes, file_fault, write_json, write_text
from benchmarks.store.keys import timing_key
from benchmarks.store.records import BaseRecord
from benchmarks.store.stored_results import StoredCell
from consistentee.arguments import checked
from consistentee.files import set_aside


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: number of cells with a record.
        computed: number of cells that this run tried to compute.
        refused: cells whose method is not defined for their task, one line each.
        failed: cells and timings that failed, one line each; not empty means exit code 1.
        table: the end screen, for a terminal.
        plan: of a dry run alone, what the run would do, in lines for people.
    """

    finished: int = 0
    computed: int = 0
    refused: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    table: Any = None
    plan: tuple[str, ...] = ()


@checked
def run_suite(
    suite: BaseSuite,
    filters: Filters | None = None,
    *,
    out: Path,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    times: bool = True,
    published_dir: Path | None = None,
    schedule: Schedule | None = None,
    console: Console | None = None,
    dry_run: bool = False,
) -> RunOutcome:
    """Compute the missing cells of a suite, time them, and write tables and figures.

    A run may be interrupted at any moment: every finished cell is whole on disk, and the next run uses it. Cells run in
    processes of their own, so a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        suite: see :func:`benchmarks.specs.suites.load_suite`.
        filters: which part of the suite to run.
        out: the run's folder.
        data_dir: where data files are looked for first.
        fresh: compute everything again.
        retry_failed: try failed cells again.
        times: measure times, after the cells; a later run can still do it.
        published_dir: published results to start from; by default ``results/SUITE`` if it exists.
        schedule: where cells run; by default here, one after another.
        console: where progress is printed; standard error by default.
        dry_run: only describe the plan and estimate its time; nothing in the results folder is changed.

    Raises:
        UserError: an error of the whole run before any training, a full disk, or lost workers.
    """
    folder, filters, schedule = RunFolder(out), filters or Filters(), schedule or Schedule()
    refuse_another_kind(suite, folder)
    run = _Run(
        suite,
        folder,
        Inputs(data_dir, FileHashes(folder.fingerprints)),
        Published.find(suite, published_dir, out),
        RunContext(Path.cwd(), RunFolder(out.absolute()), data_dir, command_line()),
        schedule,
        console or Console(stderr=True),
    )
    choices = {"fresh": fresh, "retry_failed": retry_failed, "times": times}
    if dry_run:
        from benchmarks.run.dry_run import plan_lines

        return RunOutcome(plan=tuple(plan_lines(run.planner, filters, workers=schedule.workers, **choices)))
    with only_run(folder):
        return run.complete(filters, **choices)


@dataclass(frozen=True)
class _Run:
    """One call of :func:`run_suite`."""

    suite: BaseSuite
    folder: RunFolder
    inputs: Inputs
    published: Published
    context: RunContext
    schedule: Schedule
    console: Console

    @property
    def planner(self) -> Planner:
        return Planner(self.suite, self.folder, self.inputs, self.put_aside, self.published)

    def complete(self, filters: Filters, *, fresh: bool, retry_failed: bool, times: bool) -> RunOutcome:
        planner = self.planner
        planned = planner.plan(filters, fresh=fresh, retry_failed=retry_failed)
        others = expand(self.suite, replace(filters, methods=None))
        specs = [cell.spec for cell in planned]
        outside_filter = planner.finished(spec for spec in others if spec not in specs)
        if not fresh:
            self.unpack([*planned, *outside_filter])
        for line in self.published.staleness_lines(planned):
            self.print(line)
        self.inputs.hashes.save()
        for cell in planned:
            place = self.folder.cell(cell.spec)
            if cell.failure and cell.is_refused and read_failure(place, cell.key) is None:
                write_record(place / FAILURE_FILE, cell.failure)
        self.print(f"{summary(self.suite, planned)}; results in {self.folder.root}")
        if fresh:
            shutil.rmtree(self.folder.stages, ignore_errors=True)
        missing = {cell.key for cell in planned if cell.is_missing}
        if missing or file_fault(self.folder.root / ENVIRONMENT_FILE, sealed=True):
            self.describe()
        finished = self.compute(planned)
        timings = self.due_timings(finished, outside_filter, fresh=fresh) if times else []
        if timings and not missing:
            self.describe()
        return self.outcome(finished, missing, timing_failures=self.time(timings))

    def print(self, line: str) -> None:
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def put_aside(self, fault: Fault) -> None:
        """Move a damaged or stale file out of the way, and print which."""
        self.print(fault.set_aside())

    def unpack(self, cells: Sequence[PlannedCell]) -> None:
        """Copy published cells and timings that the run's folder lacks into it."""
        stored = [cell for cell in cells if cell.stored]
        for cell in stored:
            unpack_cell(cell.stored, self.folder.cell(cell.spec))
        keys = {cell.key for cell in cells}
        protocol, timings = timing_key(self.suite.timing, self.suite.kind), 0
        for group in groups_of(cells):
            for path, timing in self.planner.missing_timings(group).items():
                is_wanted = any(contender.cell_key in keys for contender in timing.contenders)
                if timing.key == protocol and is_wanted:
                    write_record(path, timing)
                    timings += 1
        if stored or timings:
            self.print(f"{len(stored)} cells and {timings} timings taken from {self.published.root}")

    def describe(self) -> None:
        """Write the suite and a description of the machine into the run's folder."""
        suite_file = self.folder.root / SUITE_FILE
        write_text(suite_file, yaml.safe_dump(self.suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        described = {
            "command": command_line(),
            "environment": describe_environment(),
            "conditions": describe_conditions(),
        }
        write_json(self.folder.root / ENVIRONMENT_FILE, json.dumps(described, indent=1), [suite_file])

    def compute(self, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
        """Run the missing cells. A failed cell is recorded, and the run goes on."""
        jobs = [CellJob(self.context, cell) if cell.is_missing else None for cell in planned]
        missing = [job for job in jobs if job]
        with RunProgress(self.console, len(missing)) as progress:
            self.schedule.run_cells(missing, progress)
        return [
            replace(cell, record=job.result(), failure=job.failure()) if job else cell
            for cell, job in zip(planned, jobs, strict=True)
        ]

    def due_timings(
        self, finished: Sequence[PlannedCell], outside_filter: Sequence[PlannedCell], *, fresh: bool
    ) -> list[TimingJob]:
        """List the timings that are due; finished cells outside the filter are timed with the others."""
        planner, jobs = self.planner, []
        outside, protocol = groups_of(outside_filter), self.suite.timing
        for group, members in groups_of(finished).items():
            done = [*members, *outside.get(group, [])]
            if line := planner.untimed_line(done):
                self.print(line)
            if not (fresh or planner.is_timing_due(members)):
                continue
            wanted = timed_knobs([cell.record for cell in done if cell.record], protocol)
            live = [cell for cell in done if wanted.get(cell.key)]
            ready = [cell for cell in live if planner.has_model(cell)]
            if ready:
                self.keep_times_of_others(group, ready, live)
                jobs.append(TimingJob(self.context, ready, wanted, protocol))
        return jobs

    def keep_times_of_others(self, group: Group, timed: Sequence[PlannedCell], live: Sequence[PlannedCell]) -> None:
        """Keep an earlier timing if it holds cells that cannot be timed again now, instead of overwriting it.

        A timing of another protocol, or of none of today's cells, is set aside.
        """
        place = self.folder.timing(*group)
        old, _ = parse_record(place / TIMING_FILE, timed[0].kind.timing)
        others = {contender.cell_key for contender in old.contenders if contender.cell_key} if old else set()
        others -= {cell.key for cell in timed}
        if old and others:
            fits = old.key == timing_key(self.suite.timing, self.suite.kind) and others & {cell.key for cell in live}
            kept = keep_timing(place) if fits else set_aside(place / TIMING_FILE, "stale")
            self.print(f"    the earlier timing, which holds other cells, is kept as {kept.name}")

    def time(self, timings: Sequence[TimingJob]) -> list[str]:
        """Take the times while no cell runs; return the failures, since scores are worth keeping without times."""
        with RunProgress(self.console, len(timings)) as progress:
            self.schedule.run_timings(timings, progress)
        return [f"{job.name}: {failure.error}" for job in timings if (failure := job.failure())]

    def outcome(
        self, finished: Sequence[PlannedCell], computed: set[str], *, timing_failures: Sequence[str]
    ) -> RunOutcome:
        """Write tables and figures. ``computed`` holds the keys of the cells that this run tried to compute."""
        with_record = {cell.key for cell in finished if cell.record}
        lines = [(cell.is_refused, f"{cell.spec.name}: {cell.failure.error}") for cell in finished if cell.failure]
        table = None
        if with_record:
            from benchmarks import analysis

            table = analysis.report_files(self.folder.root, with_record & computed)
        failed = [line for is_refused, line in lines if not is_refused]
        return RunOutcome(
            finished=sum(cell.record is not None for cell in finished),
            computed=len(computed),
            refused=tuple(line for is_refused, line in lines if is_refused),
            failed=(*failed, *timing_failures),
            table=table,
        )


def unpack_cell(stored: StoredCell[BaseRecord], place: Path) -> None:
    """Write a published cell into its folder in a run; the record, which makes it done, comes last."""
    tables = {name: stored.rows_of(name) for name in (VALIDATION_FILE, PREDICTIONS_FILE)}
    written = {place / name: rows for name, rows in tables.items() if rows is not None}
    for path, rows in written.items():
        write_rows(path, rows)
    write_record(place / RECORD_FILE, stored.record, written)
