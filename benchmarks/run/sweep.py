"""Run a suite: compute the missing cells, each in its own process, then time them; finished results are kept."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.run.environment import command_line, describe_conditions, describe_environment
from benchmarks.run.jobs import CellJob, RunContext, TimingJob
from benchmarks.run.plan import (
    Inputs,
    PlannedCell,
    Planner,
    Published,
    Work,
    checked_kind,
    groups_of,
    plan_lines,
    summary,
    timed_knobs,
)
from benchmarks.run.pool import Schedule
from benchmarks.run.progress import RunProgress
from benchmarks.specs.base import BaseSuite
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.folders import (
    ENVIRONMENT_FILE,
    FAILURE_FILE,
    PREDICTIONS_FILE,
    SUITE_FILE,
    TIMING_FILE,
    VALIDATION_FILE,
    Fault,
    RunFolder,
    keep_timing,
    only_run,
    parse_record,
    read_failure,
    write_cell,
    write_record,
)
from benchmarks.store.hashes import file_fault, write_json, write_text
from benchmarks.store.keys import timing_key
from benchmarks.store.stored_results import is_published
from benchmarks.store.timings import TimingRecord
from benchmarks.terminal import print_line
from consistentee.arguments import checked
from consistentee.errors import UserError
from consistentee.files import only_one


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: number of cells with a record.
        computed: number of cells that this run tried to compute.
        refused: cells whose method is not defined for their task, one line each.
        failed: cells and timings that failed, one line each; not empty means exit code 1.
        table: the end screen, for a terminal.
        plan: lines of a dry run.
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
    train: bool = True,
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
        filters: which part of the suite to run. Shards may run at once into one folder; they take no times.
        out: the run's folder.
        data_dir: where data files are looked for first.
        fresh: compute everything again.
        retry_failed: try failed cells again.
        train: compute the missing cells; without, only the times of finished ones are measured.
        times: measure times, after the cells; a later run can still do it.
        published_dir: published results to start from; by default ``results/SUITE`` if it exists.
        schedule: where cells run; by default here, one after another.
        console: where progress is printed; standard error by default.
        dry_run: only describe the plan and estimate its time; nothing in the results folder is changed.

    Raises:
        UserError: an error of the whole run before any training, a full disk, or lost workers.
    """
    console, schedule = console or Console(stderr=True), schedule or Schedule()
    work = _possible(suite, Work(filters or Filters(), fresh, retry_failed, train, times))
    if is_published(out):
        raise UserError(f"{out} holds published results; give a folder of its own to the run, with --out")
    checked_kind(suite, out, "give another --out")

    def put_aside(fault: Fault) -> None:
        print_line(console, fault.set_aside())

    planner = Planner(suite, RunFolder(out), Inputs(data_dir), put_aside, Published.find(suite, published_dir, out))
    if dry_run:
        return RunOutcome(plan=tuple(plan_lines(planner, work, schedule.workers)))
    context = RunContext(Path.cwd(), RunFolder(out.absolute()), data_dir, command_line())
    try:
        with only_run(planner.folder):
            return _Run(planner, work, context, schedule, console).complete()
    except KeyboardInterrupt as error:
        kept = f"interrupted; finished cells, stages and checkpoints are kept in {out}, and the same command continues"
        raise KeyboardInterrupt(kept) from error


def _possible(suite: BaseSuite, work: Work) -> Work:
    """Leave out times that cannot be taken. Raises UserError for work that contradicts itself."""
    if work.fresh and not work.train:
        raise UserError("--fresh computes all cells: it does not take --only-timing")
    times = work.times and suite.timing.rounds > 0
    if not work.train and not times:
        raise UserError("nothing to do: --only-timing excludes --no-timing, and needs a suite with times")
    return replace(work, times=times)


@dataclass(frozen=True)
class _Run:
    """One call of :func:`run_suite`."""

    planner: Planner
    work: Work
    context: RunContext
    schedule: Schedule
    console: Console

    def complete(self) -> RunOutcome:
        with only_one(self.planner.folder.plan):
            planned, outside_filter = self.prepare()
        missing = {cell.key for cell in planned if cell.is_missing}
        finished = self.compute(planned)
        timings = self.due_timings(finished, outside_filter) if self.work.times else []
        if timings and not missing:
            describe_run(self.planner.suite, self.planner.folder)
        with RunProgress(self.console, len(timings)) as progress:  # while no cell runs
            self.schedule.run_timings(timings, progress)
        failures = [(cell.spec.name, cell.failure) for cell in finished if cell.failure]
        failures += [(job.name, failure) for job in timings if (failure := job.failure())]
        done = {cell.key for cell in finished if cell.record}
        table = None
        if done:
            from benchmarks.run import end_screen  # pandas, which few commands need

            with only_one(self.planner.folder.plan):
                table = end_screen.report_files(self.planner.folder.root, done & missing)
        return RunOutcome(
            finished=len(done),
            computed=len(missing),
            refused=tuple(f"{name}: {failure.error}" for name, failure in failures if failure.refused),
            failed=tuple(f"{name}: {failure.error}" for name, failure in failures if not failure.refused),
            table=table,
        )

    def prepare(self) -> tuple[list[PlannedCell], list[PlannedCell]]:
        """Plan the run and write what is known before any training.

        Returns the cells of this run, and the finished cells outside the filter.
        """
        planner, suite, folder = self.planner, self.planner.suite, self.planner.folder
        planned = planner.plan(self.work)
        specs = [cell.spec for cell in planned]
        others = expand(suite, replace(self.work.filters, methods=None))
        outside_filter = planner.finished(spec for spec in others if spec not in specs)
        if not self.work.fresh:
            self.unpack([*planned, *outside_filter])
        for line in planner.published.staleness_lines(planned):
            print_line(self.console, line)
        for cell in planned:
            place = folder.cell(cell.spec)
            if cell.failure and cell.state == "refused" and read_failure(place, cell.key) is None:
                write_record(place / FAILURE_FILE, cell.failure)
        print_line(self.console, f"{summary(suite, planned)}; results in {folder.root}")
        if self.work.fresh:
            shutil.rmtree(folder.stages, ignore_errors=True)
        if any(cell.is_missing for cell in planned) or file_fault(folder.root / ENVIRONMENT_FILE, sealed=True):
            describe_run(suite, folder)
        return planned, outside_filter

    def unpack(self, cells: Sequence[PlannedCell]) -> None:
        """Copy published cells and timings that the run's folder lacks into it."""
        suite, folder, cells_taken, timings_taken = self.planner.suite, self.planner.folder, 0, 0
        for cell in cells:
            if cell.stored:
                tables = {PREDICTIONS_FILE: cell.stored.predictions()}
                if (validation := cell.stored.validation()) is not None:
                    tables[VALIDATION_FILE] = validation
                write_cell(folder.cell(cell.spec), cell.stored.record, tables)
                cells_taken += 1
        keys, protocol = {cell.key for cell in cells}, timing_key(suite.timing, suite.kind)
        for group in groups_of(cells):
            for path, timing in self.planner.missing_timings(group).items():
                if timing.key == protocol and any(contender.cell_key in keys for contender in timing.contenders):
                    write_record(path, timing)
                    timings_taken += 1
        if cells_taken or timings_taken:
            place = self.planner.published.root
            print_line(self.console, f"{cells_taken} cells and {timings_taken} timings taken from {place}")

    def compute(self, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
        jobs = [CellJob(self.context, cell) if cell.is_missing else None for cell in planned]
        missing = [job for job in jobs if job]
        with RunProgress(self.console, len(missing)) as progress:
            self.schedule.run_cells(missing, progress)
        return [
            replace(cell, record=job.result(), failure=job.failure()) if job else cell
            for cell, job in zip(planned, jobs, strict=True)
        ]

    def due_timings(self, finished: Sequence[PlannedCell], outside_filter: Sequence[PlannedCell]) -> list[TimingJob]:
        """List the timings that are due; finished cells outside the filter are timed with the others.

        An earlier timing is kept, instead of being overwritten, if it holds cells that cannot be timed again now.
        """
        planner, protocol, jobs = self.planner, self.planner.suite.timing, []
        outside = groups_of(outside_filter)
        for group, members in groups_of(finished).items():
            done = [*members, *outside.get(group, [])]
            if line := planner.untimed_line(done):
                print_line(self.console, line)
            wanted = timed_knobs([cell.record for cell in done if cell.record], protocol)
            ready = [cell for cell in done if wanted.get(cell.key) and planner.has_model(cell)]
            if ready and (self.work.fresh or planner.is_timing_due(members)):
                place = planner.folder.timing(*group)
                old, _ = parse_record(place / TIMING_FILE, TimingRecord)
                if old and {contender.cell_key for contender in old.contenders} - {"", *(cell.key for cell in ready)}:
                    kept = keep_timing(place)
                    print_line(self.console, f"    the earlier timing, which holds other cells, is kept as {kept.name}")
                jobs.append(TimingJob(self.context, ready, wanted, protocol))
        return jobs


def describe_run(suite: BaseSuite, folder: RunFolder) -> None:
    """Write the suite and a description of the machine into the run's folder."""
    suite_file = folder.root / SUITE_FILE
    write_text(suite_file, yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    machine = {"environment": describe_environment(), "conditions": describe_conditions()}
    described = {"command": command_line(), **machine}
    write_json(folder.root / ENVIRONMENT_FILE, json.dumps(described, indent=1), [suite_file])
