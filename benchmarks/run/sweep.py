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

from benchmarks.run.jobs import CellJob, Job, RunContext, TimingJob, note_failure
from benchmarks.run.plan import (
    Group,
    Inputs,
    PlannedCell,
    cells_of_other_parameters,
    finished_outside_filter,
    groups_of,
    has_to_be_timed,
    knobs_to_time,
    lost_model,
    plan_cells,
    refuse_another_kind,
    refuse_undefined,
    reopen_for_timing,
    summary,
    timing_due,
    timings_of,
)
from benchmarks.run.pool import Schedule
from benchmarks.run.progress import RunProgress
from benchmarks.run.published import Published, find_published, unpack_cells, unpack_timings
from benchmarks.specs.base import BaseCellSpec, BaseSuite
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.environment import command_line, describe_conditions, describe_environment
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.folders import (
    ENVIRONMENT_FILE,
    SUITE_FILE,
    TIMING_FILE,
    Fault,
    RunFolder,
    keep_timing,
    only_run,
    read_cell,
    read_timing,
)
from benchmarks.store.keys import timing_key
from benchmarks.store.sealing import file_fault, write_json, write_text
from consistentee.arguments import checked
from consistentee.files import set_aside

_NO_RESULT = "it left neither a record nor a note of a failure"


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: number of cells with a record.
        computed: number of cells that this run tried to compute.
        refused: cells whose method is not defined for their task, one line each.
        failed: cells and timings that failed, one line each; not empty means exit code 1.
        table: the end screen, for a terminal.
    """

    finished: int
    computed: int
    refused: tuple[str, ...]
    failed: tuple[str, ...]
    table: Any = None


@dataclass
class _Run:
    """The state of one call of :func:`run_suite`."""

    suite: BaseSuite
    folder: RunFolder
    inputs: Inputs
    context: RunContext
    schedule: Schedule
    console: Console
    fresh: bool
    times: bool
    published: Published

    def print(self, line: str) -> None:
        """Print one line of plain text."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def put_aside(self, fault: Fault) -> None:
        """Move a damaged or stale file out of the way, and print which."""
        self.print(str(fault.set_aside()))


@checked
def run_suite(
    suite: BaseSuite,
    filters: Filters | None = None,
    *,
    out: Path,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    remeasure: bool = False,
    times: bool = True,
    published_dir: Path | None = None,
    schedule: Schedule | None = None,
    console: Console | None = None,
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
        remeasure: do not take published cells as done; the end screen shows them next to the new ones.
        times: measure times, after the cells; a later run can still do it.
        published_dir: published results to start from; by default ``results/SUITE`` if it exists.
        schedule: where cells run; by default here, one after another.
        console: where progress is printed; standard error by default.

    Raises:
        UserError: an error of the whole run before any training, a full disk, or lost workers.
    """
    folder = RunFolder(out)
    run = _Run(
        suite,
        folder,
        Inputs(data_dir, FileHashes(folder.fingerprints)),
        RunContext(Path.cwd(), RunFolder(out.absolute()), data_dir, command_line()),
        schedule or Schedule(),
        console or Console(stderr=True),
        fresh,
        times,
        Published() if fresh or remeasure else find_published(suite, published_dir, out),
    )
    refuse_another_kind(suite, folder)
    with only_run(folder):
        return _run(run, filters or Filters(), retry_failed)


def _run(run: _Run, filters: Filters, retry_failed: bool) -> RunOutcome:
    cells = expand(run.suite, filters)
    others = [spec for spec in expand(run.suite, replace(filters, methods=None)) if spec not in cells]
    _unpack(run, [*cells, *others])
    for fault in cells_of_other_parameters(cells, run.folder):
        run.put_aside(fault)
    planned = plan_cells(cells, run.inputs, run.folder, run.put_aside, fresh=run.fresh, retry_failed=retry_failed)
    for line in run.published.staleness_lines((cell.spec, cell.parts) for cell in planned if cell.is_missing):
        run.print(line)
    outside_filter = finished_outside_filter(others, run.inputs, run.folder)
    run.inputs.hashes.save()
    if run.times:
        planned = reopen_for_timing(planned, run.folder, run.suite.timing, run.put_aside)
    planned = refuse_undefined(planned, run.inputs, lambda cell, reason: _note_refusal(run, cell, reason))
    run.print(f"{summary(run.suite, planned)}; results in {run.folder.root}")
    if run.fresh:
        shutil.rmtree(run.folder.stages, ignore_errors=True)
    missing = [cell.key for cell in planned if cell.is_missing]
    if missing or file_fault(run.folder.root / ENVIRONMENT_FILE, sealed=True):
        _describe_run(run)
    finished = _compute(run, planned)
    timings = _due_timings(run, finished, outside_filter) if run.times else []
    if timings and not missing:
        _describe_run(run)
    timing_failures = _time(run, timings)
    return _outcome(run, finished, missing, timing_failures)


def _unpack(run: _Run, specs: Sequence[BaseCellSpec]) -> None:
    """Copy published cells and timings that the run's folder lacks into it."""
    if run.published.root is None:
        return
    wanted = [(spec, run.inputs.parts(spec)) for spec in specs]
    cells = unpack_cells(run.published, wanted, run.folder, run.put_aside)
    keys: dict[Group, set[str]] = {}
    for spec, parts in wanted:
        keys.setdefault(spec.group, set()).add(parts.key)
    timings = unpack_timings(run.published, keys, run.folder, timing_key(run.suite.timing, run.suite.kind))
    if cells or timings:
        run.print(f"{cells} cells and {timings} timings taken from {run.published.root}")


def _note_refusal(run: _Run, cell: PlannedCell, reason: str) -> PlannedCell:
    return cell.failed(note_failure(run.folder.cell(cell.spec), cell.key, reason, refused=True))


class _CellWatcher:
    """Reads the result of every cell, and shows it."""

    def __init__(self, run: _Run, cells: dict[Job, PlannedCell]) -> None:
        self.cells = cells
        self.progress = RunProgress(run.console, len(cells))

    def started(self, job: Job) -> None:
        """Show that a job runs."""
        self.progress.started(job)

    def ended(self, job: Job) -> None:
        """Read the record, or the note of a failure."""
        cell = self.cells[job]
        record, _ = read_cell(job.place, cell.parts, cell.kind.record)
        if record is not None and job.is_done():
            self.cells[job] = replace(cell, record=record)
            self.progress.ended(job, *record.summary_lines())
            return
        failure = job.failure() or note_failure(job.place, job.key, _NO_RESULT)
        self.cells[job] = cell.failed(failure)
        self.progress.ended(job, f"failed: {failure.error}", failed=True)


def _compute(run: _Run, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Run the missing cells. A failed cell is recorded, and the run goes on."""
    jobs = {number: _cell_job(run, cell) for number, cell in enumerate(planned) if cell.is_missing}
    watcher = _CellWatcher(run, {job: planned[number] for number, job in jobs.items()})
    with watcher.progress:
        run.schedule.run_cells(list(jobs.values()), watcher)
    return [watcher.cells[jobs[number]] if number in jobs else cell for number, cell in enumerate(planned)]


def _cell_job(run: _Run, cell: PlannedCell) -> CellJob:
    job = CellJob(run.context, None, cell.spec, cell.parts)
    return replace(job, replaces=job.finished_at())


class _TimingWatcher:
    """Reads the result of every timing, and shows it."""

    def __init__(self, run: _Run, total: int) -> None:
        self.failures: list[str] = []
        self.progress = RunProgress(run.console, total)

    def started(self, job: Job) -> None:
        """Show that a job runs."""
        self.progress.started(job)

    def ended(self, job: Job) -> None:
        """Read the note of a failure, if there is no timing."""
        if job.is_done():
            self.progress.ended(job)
            return
        failure = job.failure()
        reason = failure.error if failure else _NO_RESULT
        self.failures.append(f"{job.name}: {reason}")
        self.progress.ended(job, f"failed: {reason}", failed=True)


def _time(run: _Run, timings: Sequence[TimingJob]) -> list[str]:
    """Take the times while no cell runs; return the failures, since scores are worth keeping without times."""
    watcher = _TimingWatcher(run, len(timings))
    with watcher.progress:
        run.schedule.run_timings(timings, watcher)
    return watcher.failures


def _due_timings(run: _Run, finished: Sequence[PlannedCell], outside_filter: Sequence[PlannedCell]) -> list[TimingJob]:
    """List the timings that are due; finished cells outside the filter are timed with the others."""
    jobs = []
    outside = groups_of(outside_filter)
    for group, members in groups_of(finished).items():
        protocol = run.suite.timing
        if not (run.fresh or timing_due(group, members, run.folder, protocol, run.put_aside)):
            continue
        done = [*members, *outside.get(group, [])]
        wanted = knobs_to_time(done, protocol)
        live = [cell for cell in done if wanted.get(cell.key)]
        ready = [cell for cell in live if lost_model(cell, run.folder) is None]
        taken = timings_of(group, members[0].spec.kind, run.folder, protocol, run.put_aside)
        for cell in live:
            if cell not in ready and has_to_be_timed(cell, taken, wanted, run.folder):
                run.print(
                    f"{cell.spec.name}: not timed, its trained model is gone; a run that includes it makes it again"
                )
        if ready:
            _keep_times_of_others(run, group, ready, live)
            job = TimingJob(run.context, None, tuple(ready), wanted, protocol)
            jobs.append(replace(job, replaces=job.finished_at()))
    return jobs


def _keep_times_of_others(run: _Run, group: Group, timed: Sequence[PlannedCell], live: Sequence[PlannedCell]) -> None:
    """Keep an earlier timing if it holds cells that cannot be timed again now, instead of overwriting it.

    A timing of another protocol, or of none of today's cells, is set aside.
    """
    place = run.folder.timing(*group)
    old, _ = read_timing(place, timed[0].kind.timing)
    others = {contender.cell_key for contender in old.contenders if contender.cell_key} if old else set()
    others -= {cell.key for cell in timed}
    if old and others:
        fits = old.key == timing_key(run.suite.timing, run.suite.kind) and others & {cell.key for cell in live}
        kept = keep_timing(place) if fits else set_aside(place / TIMING_FILE, "stale")
        run.print(f"    the earlier timing, which holds other cells, is kept as {kept.name}")


def _describe_run(run: _Run) -> None:
    """Write the suite and a description of the machine into the run's folder."""
    values = run.suite.model_dump(mode="json")
    suite_file = run.folder.root / SUITE_FILE
    write_text(suite_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    described = {
        "command": command_line(),
        "environment": describe_environment(),
        "conditions": describe_conditions(),
    }
    write_json(run.folder.root / ENVIRONMENT_FILE, json.dumps(described, indent=1), [suite_file])


def _outcome(
    run: _Run, finished: Sequence[PlannedCell], computed: Sequence[str], timing_failures: Sequence[str]
) -> RunOutcome:
    """Write tables and figures. ``computed`` holds the keys of the cells that this run tried to compute."""
    with_record = [cell for cell in finished if cell.record]
    failures = [(cell, cell.failure) for cell in finished if cell.failure]
    table = None
    if with_record:
        from benchmarks.analysis import report_files

        table = report_files(run.folder.root, {cell.key for cell in with_record if cell.key in computed})
    failed = [f"{cell.spec.name}: {failure.error}" for cell, failure in failures if not failure.refused]
    return RunOutcome(
        finished=len(with_record),
        computed=len(computed),
        refused=tuple(f"{cell.spec.name}: {failure.error}" for cell, failure in failures if failure.refused),
        failed=(*failed, *timing_failures),
        table=table,
    )
