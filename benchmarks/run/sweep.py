"""Run a suite: compute the missing cells, each in its own process, then time them; finished results are kept."""

import json
import shutil
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from rich.console import Console

from benchmarks.kinds import Inputs
from benchmarks.measure.environment import command_line, describe_conditions, describe_environment
from benchmarks.run.cell import CellJob
from benchmarks.run.jobs import RunContext, RunProgress
from benchmarks.run.plan import PlannedCell, Planner, Work, groups_of, summary
from benchmarks.run.pool import Schedule
from benchmarks.run.timing import TimingJob, Timings
from benchmarks.specs.base import BaseSuite, group_name, short_name
from benchmarks.specs.suites import Filters
from benchmarks.store.folders import (
    ENVIRONMENT_FILE,
    FAILURE_FILE,
    SUITE_FILE,
    Fault,
    RunFolder,
    only_run,
    read_failure,
    write_cell,
    write_record,
    write_timing,
)
from benchmarks.store.hashes import file_fault, write_json, write_text
from benchmarks.store.results_folder import checked_kind, is_published, published_results
from benchmarks.terminal import print_line
from consistentee.arguments import checked
from consistentee.errors import UserError


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
        filters: which part of the suite to run.
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
    folder, published, noted = RunFolder(out), published_results(suite, published_dir, out), list[str]()

    def put_aside(fault: Fault) -> None:
        if dry_run:
            noted.append(f"{fault}: it would be set aside")
        else:
            print_line(console, fault.set_aside())

    planner = Planner(suite, work, folder, Inputs(data_dir), published, put_aside)
    if dry_run:
        lines = plan_lines(planner, schedule.workers)
        return RunOutcome(plan=(*dict.fromkeys(noted), *lines))
    context = RunContext(Path.cwd(), RunFolder(out.absolute()), data_dir, command_line())
    try:
        with only_run(folder):
            return _Run(planner, Timings(planner), context, schedule, console).complete()
    except KeyboardInterrupt as error:
        again = "begins anew; without --fresh it continues, with earlier results too" if fresh else "continues"
        kept = f"interrupted; finished cells, stages and checkpoints are kept in {out}, and the same command {again}"
        raise KeyboardInterrupt(kept) from error


def _possible(suite: BaseSuite, work: Work) -> Work:
    """Leave out times that cannot be taken. Raises UserError for work that contradicts itself."""
    if work.fresh and not work.train:
        raise UserError("--fresh computes all cells: leave out --only-timing")
    times = work.times and suite.timing.rounds > 0
    if not work.train and not times:
        raise UserError("nothing to do: --only-timing excludes --no-timing, and needs a suite with times")
    return replace(work, times=times)


@dataclass(frozen=True)
class _Run:
    planner: Planner
    timings: Timings
    context: RunContext
    schedule: Schedule
    console: Console

    def complete(self) -> RunOutcome:
        planned, others = self.planner.plan(), self.planner.finished_outside()
        self.prepare(planned, others)
        missing = {cell.key for cell in planned if cell.is_missing}
        finished = self.compute(planned)
        timings = self.due_timings(finished, others) if self.planner.work.times else []
        if timings and not missing:
            describe_run(self.planner.suite, self.planner.run)
        with RunProgress(self.console, len(timings)) as progress:  # while no cell runs
            self.schedule.run_timings(timings, progress)
        failures = [(cell.spec.name, cell.failure) for cell in finished if cell.failure]
        failures += [(job.name, failure) for job in timings if (failure := job.failure())]
        done = {cell.key for cell in finished if cell.record}
        return RunOutcome(
            finished=len(done),
            computed=len(missing),
            refused=tuple(f"{name}: {failure.error}" for name, failure in failures if failure.refused),
            failed=tuple(f"{name}: {failure.error}" for name, failure in failures if not failure.refused),
            table=report(self.planner.run) if done else None,
        )

    def prepare(self, planned: Sequence[PlannedCell], others: Sequence[PlannedCell]) -> None:
        """Write what is known before any training; ``others`` are the finished cells outside of the filter."""
        suite, run, is_fresh = self.planner.suite, self.planner.run, self.planner.work.fresh
        if not is_fresh:
            self.take_published([*planned, *others])
        for line in (*self.planner.stale_lines(planned), *_disk_lines(suite, planned, run.root)):
            print_line(self.console, line)
        for cell in planned:
            place = run.cell(cell.spec)
            if cell.failure and cell.failure.refused and read_failure(place, cell.key) is None:
                write_record(place / FAILURE_FILE, cell.failure)
        print_line(self.console, f"{summary(suite, planned)}; results in {run.root}")
        if is_fresh:
            shutil.rmtree(run.stages, ignore_errors=True)
        if any(cell.is_missing for cell in planned) or file_fault(run.root / ENVIRONMENT_FILE, sealed=True):
            describe_run(suite, run)

    def take_published(self, cells: Sequence[PlannedCell]) -> None:
        """Copy published cells and timings that the run's folder lacks into it."""
        published, run, cells_taken, timings_taken = self.planner.published, self.planner.run, 0, 0
        if published is None:
            return
        for cell in cells:
            if cell.published and cell.record:
                write_cell(run.cell(cell.spec), cell.record, published.frames_of(cell.folder))
                cells_taken += 1
        keys = {cell.key for cell in cells}
        for group in groups_of(cells):
            for file, timing in self.timings.only_published(group).items():
                if timing.key == self.timings.key and any(one.cell_key in keys for one in timing.timed):
                    write_timing(run.timings / file, timing, published.times_of(file))
                    timings_taken += 1
        if cells_taken or timings_taken:
            print_line(self.console, f"taken from {published.root}: cells {cells_taken}, timings {timings_taken}")

    def compute(self, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
        jobs = [CellJob(self.context, cell) if cell.is_missing else None for cell in planned]
        missing = [job for job in jobs if job]
        with RunProgress(self.console, len(missing)) as progress:
            self.schedule.run_cells(missing, progress)
        return [
            replace(cell, record=job.result(), failure=job.failure()) if job else cell
            for cell, job in zip(planned, jobs, strict=True)
        ]

    def due_timings(self, finished: Sequence[PlannedCell], others: Sequence[PlannedCell]) -> list[TimingJob]:
        """List the timings that are due; finished cells outside the filter are timed with the others.

        An earlier timing is kept, instead of being overwritten, if it holds cells that cannot be timed again now.
        """
        jobs, outside = [], groups_of(others)
        for group, members in groups_of(finished).items():
            done = [cell for cell in [*members, *outside.get(group, [])] if cell.record]
            if not done:
                continue
            times = self.timings.of_group(done)
            for line in times.lines:
                print_line(self.console, line)
            own = {cell.key for cell in members}
            if not self.planner.work.fresh and not any(cell.key in own for cell in times.due):
                continue
            if ready := [cell for cell in done if times.knobs[cell.key] and self.timings.has_model(cell)]:
                if kept := self.timings.keep_times_of_others(group, ready):
                    print_line(self.console, f"    the earlier timing, which holds other cells, is kept as {kept}")
                jobs.append(TimingJob(self.context, ready, times.knobs, self.planner.suite.timing))
        return jobs


def report(run: RunFolder) -> Any:
    """Write tables and a figure into a run's folder, and return the screen that the run ends with."""
    from benchmarks.analysis import board  # figures, which few commands need

    return board.report_files(run.root)


def describe_run(suite: BaseSuite, folder: RunFolder) -> None:
    """Write the suite and a description of the machine into the run's folder."""
    suite_file = folder.root / SUITE_FILE
    write_text(suite_file, yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    machine: dict[str, object] = {"command": command_line(), "environment": describe_environment()}
    machine["conditions"] = describe_conditions()
    write_json(folder.root / ENVIRONMENT_FILE, json.dumps(machine, indent=1), [suite_file])


def plan_lines(planner: Planner, workers: int) -> list[str]:
    """Describe the plan of a run in lines for people."""
    planned, published, work, timings = planner.plan(), planner.published, planner.work, Timings(planner)
    missing = [cell for cell in planned if cell.is_missing]
    records = [cell.record for cell in planned if cell.record and not cell.published]
    records += published.cells.values() if published else []
    trained = [((one.task, one.backbone, one.label), one.train_seconds) for one in records]
    groups = groups_of(planned) if work.times else {}
    states = {group: timings.of_group(cells) for group, cells in groups.items()}
    due = [g for g, cells in groups.items() if work.fresh or states[g].due or any(cell.is_missing for cell in cells)]
    taken = [*published.timings.values()] if published else []
    taken += [timing for group in groups for timing in timings.taken(group)]
    timed = [((timing.task, timing.backbone), timing.total_seconds) for timing in taken]
    to_train = [(short_name(spec.task), short_name(spec.backbone), spec.label) for spec in (c.spec for c in missing)]
    to_time = [(short_name(task), short_name(backbone)) for task, backbone, _ in due]
    return [
        *planner.stale_lines(planned),
        *_disk_lines(planner.suite, planned, planner.run.root),
        f"{summary(planner.suite, planned)}; results in {planner.run.root}",
        *(f"{cell.state:8} {cell.spec.name}" for cell in planned),
        *(f"to time  {group_name(group)}" for group in due),
        *(line for state in states.values() for line in state.lines),
        *_estimate("training", to_train, trained, workers),
        *_estimate("timing", to_time, timed),
        "nothing was run or written",
    ]


def _disk_lines(suite: BaseSuite, planned: Sequence[PlannedCell], folder: Path) -> list[str]:
    """Warn of a disk with less room than the missing cells need by the suite's own estimate, which may be in words."""
    each = suite.cost.get("disk_gb_a_cell")
    needed = each * sum(cell.is_missing for cell in planned) if isinstance(each, float) else 0.0
    free = shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists())).free / 1e9
    return [f"the disk may fill up: about {needed:.0f} GB are needed, {free:.0f} are free"] if needed > free else []


def _estimate(
    what: str, wanted: Sequence[Hashable], recorded: Sequence[tuple[Hashable, float]], workers: int = 1
) -> list[str]:
    known = [median(own) for name in wanted if (own := [seconds for other, seconds in recorded if other == name])]
    if not known:
        return [f"{what}: no estimate, since none of it is recorded yet"] if wanted else []
    total = sum(known) / workers
    shown = f"{total / 60:.0f} min" if total >= 90 else f"{total:.0f} s"
    parallel = f" with {workers} workers, if they do not slow each other down" if workers > 1 else ""
    return [f"{what}: about {shown}{parallel}, from the recorded seconds of {len(known)} of {len(wanted)}"]
