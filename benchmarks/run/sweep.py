"""A run of a suite: what is missing is computed, every cell in its own process, then timed; what is done is kept."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from benchmarks.run.jobs.failures import note_failure
from benchmarks.run.jobs.job import CellJob, Job, Surroundings, TimingJob
from benchmarks.run.jobs.schedulers import Schedule
from benchmarks.run.planning.plan import (
    Group,
    Inputs,
    PlannedCell,
    finished_neighbours,
    groups_of,
    has_to_be_timed,
    knobs_to_time,
    lost_model,
    of_other_parameters,
    plan_cells,
    refuse_another_kind,
    refuse_undefined,
    reopen_for_timing,
    summary,
    timing_due,
    timings_of,
)
from benchmarks.run.planning.published import Published, find_published, unpack_cells, unpack_timings
from benchmarks.run.progress import RunProgress
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
from consistentee.files import set_aside


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: cells whose record is there.
        computed: cells that this run tried to compute.
        refused: what is not defined for its task, one line a cell.
        failed: what failed, one line a cell; not empty means exit code 1.
        table: what is shown on a terminal.
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
    surroundings: Surroundings
    schedule: Schedule
    console: Console
    fresh: bool
    published: Published

    def say(self, line: str) -> None:
        """Print one line of plain text."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def put_aside(self, fault: Fault) -> None:
        """Move what cannot be used out of the way, and say so."""
        self.say(str(fault.set_aside()))


def run_suite(
    suite: BaseSuite,
    filters: Filters | None = None,
    *,
    out: Path,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    remeasure: bool = False,
    published_dir: Path | None = None,
    schedule: Schedule | None = None,
    console: Console | None = None,
) -> RunOutcome:
    """Run what is missing of a suite, then time it, then write tables and figures.

    Interrupt it at any moment: every finished cell is whole on disk and is used by the next run. Processes are started
    for the cells, so a script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        suite: see :func:`benchmarks.specs.suites.load_suite`.
        filters: which part of it.
        out: the run's folder.
        data_dir: where data files are looked for first.
        fresh: compute everything again.
        retry_failed: try failed cells again.
        remeasure: what is published does not count as done; in the end it is shown beside.
        published_dir: published results to start from; by default ``results/SUITE``, if there is such a folder here.
        schedule: where cells run; by default here, one after another.
        console: where lines go; standard error by default.

    Raises:
        UserError: something that concerns the whole run, before any training; or a full disk, or lost workers.
    """
    folder = RunFolder(out)
    run = _Run(
        suite,
        folder,
        Inputs(data_dir, FileHashes(folder.fingerprints)),
        Surroundings(Path.cwd(), RunFolder(out.absolute()), data_dir, command_line()),
        schedule or Schedule(),
        console or Console(stderr=True),
        fresh,
        Published() if fresh or remeasure else find_published(suite, published_dir, out),
    )
    refuse_another_kind(suite, folder)
    with only_run(folder):
        return _run(run, filters or Filters(), retry_failed)


def _run(run: _Run, filters: Filters, retry_failed: bool) -> RunOutcome:
    cells = expand(run.suite, filters)
    others = [spec for spec in expand(run.suite, replace(filters, methods=None)) if spec not in cells]
    _unpack(run, [*cells, *others])
    for fault in of_other_parameters(cells, run.folder):
        run.put_aside(fault)
    planned = plan_cells(cells, run.inputs, run.folder, run.put_aside, fresh=run.fresh, retry_failed=retry_failed)
    for line in run.published.staleness_lines((cell.spec, cell.parts) for cell in planned if cell.is_missing):
        run.say(line)
    neighbours = finished_neighbours(others, run.inputs, run.folder)
    run.inputs.hashes.save()
    planned = reopen_for_timing(planned, run.folder, run.suite.timing, run.put_aside)
    planned = refuse_undefined(planned, run.inputs, lambda cell, reason: _note_refusal(run, cell, reason))
    run.say(f"{summary(run.suite, planned)}; results in {run.folder.root}")
    if run.fresh:
        shutil.rmtree(run.folder.stages, ignore_errors=True)
    missing = [cell.key for cell in planned if cell.is_missing]
    if missing or file_fault(run.folder.root / ENVIRONMENT_FILE, sealed=True):
        _describe_run(run)
    finished = _compute(run, planned)
    timings = _due_timings(run, finished, neighbours)
    if timings and not missing:
        _describe_run(run)
    timing_failures = _time(run, timings)
    return _outcome(run, finished, missing, timing_failures)


def _unpack(run: _Run, specs: Sequence[BaseCellSpec]) -> None:
    """Begin with what is published of these cells and of their timings; the run's own folder comes first."""
    if run.published.root is None:
        return
    wanted = [(spec, run.inputs.parts(spec)) for spec in specs]
    cells = unpack_cells(run.published, wanted, run.folder, run.put_aside)
    keys: dict[Group, set[str]] = {}
    for spec, parts in wanted:
        keys.setdefault(spec.group, set()).add(parts.key)
    timings = unpack_timings(run.published, keys, run.folder, timing_key(run.suite.timing, run.suite.kind))
    if cells or timings:
        run.say(f"{cells} cells and {timings} timings taken from {run.published.root}")


def _note_refusal(run: _Run, cell: PlannedCell, reason: str) -> PlannedCell:
    return replace(cell, failure=note_failure(run.folder.cell(cell.spec), cell.key, reason, refused=True))


class _CellWatcher:
    """Reads what became of every job, and shows it."""

    def __init__(self, run: _Run, cells: dict[Job, PlannedCell]) -> None:
        self.cells = cells
        self.progress = RunProgress(run.console, len(cells))

    def started(self, job: Job) -> None:
        """Show it."""
        self.progress.started(job)

    def ended(self, job: Job) -> None:
        """Read the record or the note of a failure."""
        cell = self.cells[job]
        record, _ = read_cell(job.place, cell.parts, cell.kind.record)
        if record is not None and job.is_done():
            self.cells[job] = replace(cell, record=record)
            self.progress.ended(job, *record.summary_lines())
            return
        failure = job.failure() or note_failure(job.place, job.key, "it left neither a record nor a note of a failure")
        self.cells[job] = replace(cell, failure=failure)
        self.progress.ended(job, f"failed: {failure.error}", failed=True)


def _compute(run: _Run, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Run the missing cells; a failure is noted, and the run goes on."""
    jobs = {number: _cell_job(run, cell) for number, cell in enumerate(planned) if cell.is_missing}
    watcher = _CellWatcher(run, {job: planned[number] for number, job in jobs.items()})
    with watcher.progress:
        run.schedule.run_cells(list(jobs.values()), watcher)
    return [watcher.cells[jobs[number]] if number in jobs else cell for number, cell in enumerate(planned)]


def _cell_job(run: _Run, cell: PlannedCell) -> CellJob:
    job = CellJob(run.surroundings, None, cell.spec, cell.parts)
    return replace(job, replaces=job.finished_at())


class _TimingWatcher:
    """Reads what became of every timing, and shows it."""

    def __init__(self, run: _Run, total: int) -> None:
        self.failures: list[str] = []
        self.progress = RunProgress(run.console, total)

    def started(self, job: Job) -> None:
        """Show it."""
        self.progress.started(job)

    def ended(self, job: Job) -> None:
        """Read the note of a failure, if the timing is not there."""
        if job.is_done():
            self.progress.ended(job)
            return
        failure = job.failure()
        reason = failure.error if failure else "it left neither a record nor a note of a failure"
        self.failures.append(f"{job.name}: {reason}")
        self.progress.ended(job, f"failed: {reason}", failed=True)


def _time(run: _Run, timings: Sequence[TimingJob]) -> list[str]:
    """Take the times, when no cell runs; return what failed: scores are worth keeping without their times."""
    watcher = _TimingWatcher(run, len(timings))
    with watcher.progress:
        run.schedule.run_timings(timings, watcher)
    return watcher.failures


def _due_timings(run: _Run, finished: Sequence[PlannedCell], neighbours: Sequence[PlannedCell]) -> list[TimingJob]:
    """Return the timings that are due, of the finished cells outside the filter too."""
    jobs = []
    outside = groups_of(neighbours)
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
                run.say(
                    f"{cell.spec.name}: not timed, its trained model is gone; a run that includes it makes it again"
                )
        if ready:
            _keep_times_of_others(run, group, ready, live)
            job = TimingJob(run.surroundings, None, tuple(ready), wanted, protocol)
            jobs.append(replace(job, replaces=job.finished_at()))
    return jobs


def _keep_times_of_others(run: _Run, group: Group, timed: Sequence[PlannedCell], live: Sequence[PlannedCell]) -> None:
    """Keep a timing, instead of overwriting it, where it holds cells that cannot be timed again now.

    Taken by another protocol, or of cells that are not those of today, it is set aside.
    """
    place = run.folder.timing(*group)
    old, _ = read_timing(place, timed[0].kind.timing)
    others = {contender.cell_key for contender in old.contenders if contender.cell_key} if old else set()
    others -= {cell.key for cell in timed}
    if old and others:
        fits = old.key == timing_key(run.suite.timing, run.suite.kind) and others & {cell.key for cell in live}
        kept = keep_timing(place) if fits else set_aside(place / TIMING_FILE, "stale")
        run.say(f"    the earlier timing, which holds other cells, is kept as {kept.name}")


def _describe_run(run: _Run) -> None:
    """Write what was asked for and on what machine it ran, beside the results."""
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
    """Write tables and figures. ``computed``: keys of the cells that this run tried to compute."""
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
