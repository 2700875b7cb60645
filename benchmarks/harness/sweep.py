"""A run of a suite: what is missing is computed, cell after cell, then timed; what is done is kept and reported."""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from benchmarks.harness.environment import command_line, describe_conditions, describe_environment, now
from benchmarks.harness.fingerprint import FileHashes
from benchmarks.harness.planning import (
    Group,
    Inputs,
    PlannedCell,
    finished_neighbours,
    groups_of,
    plan_cells,
    reopen_for_timing,
    timed_points,
    timing_due,
)
from benchmarks.harness.records import FailureRecord
from benchmarks.harness.spec import Filters, SuiteSpec, display_name, expand
from benchmarks.harness.storage import (
    FAILURE_FILE,
    TIMING_FILE,
    Fault,
    RunFolder,
    only_run,
    read_timing,
    set_aside,
    write_record,
    write_text,
)
from consistentee.errors import UserError
from consistentee.files import DiskFullError, is_disk_full
from consistentee.method import get_method


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        finished: cells whose record is there.
        computed: cells that this run tried to compute.
        refused: what is not defined for its task, one line a cell.
        failed: what failed, one line a cell; not empty means exit code 1.
        table: what the report shows on a terminal.
    """

    finished: int
    computed: int
    refused: tuple[str, ...]
    failed: tuple[str, ...]
    table: Any = None


@dataclass
class _Run:
    """The state of one call of :func:`run_suite`."""

    suite: SuiteSpec
    folder: RunFolder
    inputs: Inputs
    console: Console
    progress: bool
    fresh: bool
    changed: bool = False

    def say(self, line: str) -> None:
        """Print one line of plain text."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def say_fault(self, fault: Fault) -> None:
        """Report a file that was set aside."""
        self.say(str(fault))


def run_suite(
    suite: SuiteSpec,
    filters: Filters | None = None,
    *,
    out: Path,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
    console: Console | None = None,
) -> RunOutcome:
    """Run what is missing of a suite, then time it, then write tables and figures.

    Interrupt it at any moment: every finished cell is whole on disk and is used by the next run.

    Args:
        suite: see :func:`benchmarks.harness.spec.load_suite`.
        filters: which part of it.
        out: the results folder.
        data_dir: where data files are looked for first.
        fresh: compute everything again.
        retry_failed: try failed cells again.
        progress: show bars, where the console is a terminal.
        console: where lines go; standard error by default.

    Raises:
        UserError: something that concerns the whole run, before any training; or a full disk.
    """
    console = console or Console(stderr=True)
    folder = RunFolder(out)
    inputs = Inputs(data_dir, FileHashes(folder.fingerprints))
    run = _Run(suite, folder, inputs, console, progress and console.is_terminal, fresh)
    with only_run(folder):
        return _run(run, filters or Filters(), retry_failed)


def _run(run: _Run, filters: Filters, retry_failed: bool) -> RunOutcome:
    cells = expand(run.suite, filters)
    others = [spec for spec in expand(run.suite, replace(filters, methods=None)) if spec not in cells]
    planned = plan_cells(cells, run.inputs, run.folder, run.say_fault, fresh=run.fresh, retry_failed=retry_failed)
    neighbours = finished_neighbours(others, run.inputs, run.folder)
    run.inputs.hashes.save()
    planned = reopen_for_timing(planned, run.folder, run.suite.timing, run.say_fault)
    planned = _refuse_undefined(run, planned)
    _announce(run, planned)
    if run.fresh:
        shutil.rmtree(run.folder.stages, ignore_errors=True)
    missing = sum(_is_missing(cell) for cell in planned)
    finished = _compute(run, planned, missing)
    failures = _time_groups(run, finished, neighbours)
    if run.changed:
        _describe_run(run)
    return _outcome(run, finished, missing, failures)


def _is_missing(cell: PlannedCell) -> bool:
    return cell.record is None and cell.failure is None


def _refuse_undefined(run: _Run, planned: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Build the method of every missing cell, so that a wrong name or parameter ends the run before any training."""
    checked = []
    for cell in planned:
        if _is_missing(cell):
            method = get_method(cell.spec.method, **cell.spec.parameters)
            try:
                method.check_task(run.inputs.task(cell.spec))
            except UserError as error:
                checked.append(replace(cell, failure=_note_failure(run, cell, error, refused=True)))
                continue
        checked.append(cell)
    return checked


def _announce(run: _Run, planned: Sequence[PlannedCell]) -> None:
    done = sum(cell.record is not None for cell in planned)
    missing = sum(_is_missing(cell) for cell in planned)
    refused = sum(bool(cell.failure and cell.failure.refused) for cell in planned)
    failed = len(planned) - done - missing - refused
    parts = [f"{done} done", f"{missing} to run"]
    parts += [f"{refused} not defined for their task"] if refused else []
    parts += [f"{failed} failed before (--retry-failed tries them again)"] if failed else []
    run.say(f"suite {run.suite.name}: {len(planned)} cells: {', '.join(parts)}; results in {run.folder.root}")


def _compute(run: _Run, planned: Sequence[PlannedCell], missing: int) -> list[PlannedCell]:
    """Run the missing cells one after another; a failure is noted, and the run goes on."""
    finished, number, started = [], 0, time.monotonic()
    for cell in planned:
        if not _is_missing(cell):
            finished.append(cell)
            continue
        number += 1
        run.say(f"[{number}/{missing}] {cell.spec.name}{_remaining(started, number - 1, missing)}")
        finished.append(_attempt(run, cell))
    return finished


def _attempt(run: _Run, cell: PlannedCell) -> PlannedCell:
    from benchmarks.harness.cell import run_cell

    started = time.monotonic()
    run.changed = True
    try:
        task = run.inputs.task(cell.spec)
        record = run_cell(cell.spec, cell.key, task, run.folder, progress=run.progress)
    except Exception as error:  # a method may fail in any way at all; the other cells are still worth running
        if is_disk_full(error):
            raise DiskFullError(run.folder.cell(cell.spec)) from error
        failure = _note_failure(run, cell, error, refused=False)
        run.say(f"    failed: {failure.error}")
        return replace(cell, failure=failure)
    (run.folder.cell(cell.spec) / FAILURE_FILE).unlink(missing_ok=True)
    best = max(record.curve_test, key=lambda point: point.average_layers)
    run.say(
        f"    {record.metric} {100 * best.scores[record.metric]:.1f} at {best.average_layers:.2f} of "
        f"{record.num_layers} layers, {time.monotonic() - started:.0f} s"
    )
    wrong = [point for point in record.operating_points if point.live_disagreements]
    for point in wrong:
        run.say(f"    {point.live_disagreements} of {point.live_rows} rows differ live at knob {point.knob:g}")
    return replace(cell, record=record)


def _remaining(started: float, done: int, total: int) -> str:
    if not done:
        return ""
    minutes = (time.monotonic() - started) / done * (total - done) / 60
    return f" (at this pace {max(1, round(minutes))} min more for the cells)"


def _note_failure(run: _Run, cell: PlannedCell, error: Exception, *, refused: bool) -> FailureRecord:
    text = " ".join(str(error).split()) or "no message"
    failure = FailureRecord(
        key=cell.key,
        error=text if isinstance(error, UserError) else f"{type(error).__name__}: {text}",
        refused=refused,
        traceback="" if refused else _without_folders("".join(traceback.format_exception(error))),
        failed_at=now(),
    )
    write_record(run.folder.cell(cell.spec) / FAILURE_FILE, failure)
    return failure


def _without_folders(text: str) -> str:
    """Shorten the folders of this machine in a traceback."""
    for folder, shown in ((Path.cwd(), "."), (Path(sys.prefix), "<python>"), (Path.home(), "~")):
        text = text.replace(f"{folder}{os.sep}", f"{shown}{os.sep}")
    return text


def _time_groups(run: _Run, finished: Sequence[PlannedCell], neighbours: Sequence[PlannedCell]) -> list[str]:
    """Time every group that is due, the finished cells outside the filter included; return what failed."""
    failures = []
    outside = groups_of(neighbours)
    for group, members in groups_of(finished).items():
        protocol = run.suite.timing
        if not (run.fresh or timing_due(group, members, run.folder, protocol, run.say_fault)):
            continue
        live = [
            cell for cell in [*members, *outside.get(group, [])] if cell.record and timed_points(cell.record, protocol)
        ]
        ready = [cell for cell in live if run.folder.model(cell.key).is_dir()]
        for cell in live:
            if cell not in ready:
                run.say(
                    f"{cell.spec.name}: not timed, its trained model is gone; a run that includes it makes it again"
                )
        if ready:
            _keep_times_of_others(run, group, ready)
            failures += _time_group(run, group, ready)
    return failures


def _keep_times_of_others(run: _Run, group: Group, timed: Sequence[PlannedCell]) -> None:
    """Set a timing aside, instead of overwriting it, where it holds cells that cannot be timed again now."""
    place = run.folder.timing(*group)
    old, _ = read_timing(place)
    keys = {cell.key for cell in timed}
    if old and any(contender.cell_key and contender.cell_key not in keys for contender in old.contenders):
        kept = set_aside(place / TIMING_FILE, "stale")
        run.say(f"    the earlier timing, which holds other cells, is kept as {kept.name}")


def _time_group(run: _Run, group: Group, cells: Sequence[PlannedCell]) -> list[str]:
    from benchmarks.harness.timing import run_timing

    name = " · ".join(display_name(str(part)) for part in group)
    points = sum(len(timed_points(cell.record, run.suite.timing)) for cell in cells if cell.record)
    run.say(f"timing {name}: {points} operating points and the stock model")
    run.changed = True
    try:
        task = run.inputs.task(cells[0].spec)
        run_timing(cells, task, run.suite.timing, run.folder, progress=run.progress)
    except Exception as error:  # scores are worth keeping without their times
        if is_disk_full(error):
            raise DiskFullError(run.folder.timing(*group)) from error
        run.say(f"    failed: {error}")
        return [f"timing {name}: {type(error).__name__}: {error}"]
    return []


def _describe_run(run: _Run) -> None:
    """Write what was asked for and on what machine it ran, beside the results."""
    values = run.suite.model_dump(mode="json")
    write_text(run.folder.root / "suite.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    described = {
        "command": command_line(),
        "environment": describe_environment(),
        "conditions": describe_conditions(),
    }
    write_text(run.folder.root / "environment.json", json.dumps(described, indent=1) + "\n")


def _outcome(run: _Run, finished: Sequence[PlannedCell], computed: int, timing_failures: Sequence[str]) -> RunOutcome:
    with_record = [cell for cell in finished if cell.record]
    failures = [(cell, cell.failure) for cell in finished if cell.failure]
    table = None
    if with_record:
        from benchmarks.analysis import report_files

        table = report_files(run.folder.root)
    failed = [f"{cell.spec.name}: {failure.error}" for cell, failure in failures if not failure.refused]
    return RunOutcome(
        finished=len(with_record),
        computed=computed,
        refused=tuple(f"{cell.spec.name}: {failure.error}" for cell, failure in failures if failure.refused),
        failed=(*failed, *timing_failures),
        table=table,
    )
