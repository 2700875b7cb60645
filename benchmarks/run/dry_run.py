"""Describe what a run would do, and about how long it would take: ``consistentee run --dry-run``. Trains nothing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.run.plan import (
    Inputs,
    PlannedCell,
    cells_of_other_parameters,
    groups_of,
    plan_cells,
    refuse_another_kind,
    refuse_undefined,
    reopen_for_timing,
    summary,
    timing_due,
)
from benchmarks.run.published import Published, find_published
from benchmarks.specs.base import BaseCellSpec, BaseSuite, display_name
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.folders import RunFolder, read_timings
from benchmarks.store.records import BaseRecord, BaseTimingRecord, FailureRecord
from consistentee.training.recipe import RecipeSettings

_SHOWN_IN_MINUTES_FROM = 90.0  # seconds


def plan_lines(
    suite: BaseSuite,
    filters: Filters | None = None,
    *,
    out: Path,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    remeasure: bool = False,
    times: bool = True,
    workers: int = 1,
    published_dir: Path | None = None,
) -> list[str]:
    """Describe the plan of a run in lines for people; nothing in the results folder is changed.

    Takes the arguments of :func:`benchmarks.run.sweep.run_suite`, and raises the same errors.
    """
    folder = RunFolder(out)
    refuse_another_kind(suite, folder)
    stored = find_published(suite, published_dir, out)
    used = Published() if fresh or remeasure else stored
    inputs = Inputs(data_dir, FileHashes(folder.fingerprints))
    faults: list[str] = []

    def note(fault: object) -> None:
        faults.append(f"{fault}: it would be set aside")

    cells = expand(suite, filters)
    for fault in cells_of_other_parameters(cells, folder):
        note(fault)
    planned = plan_cells(cells, inputs, folder, note, fresh=fresh, retry_failed=retry_failed, published=used)
    records = [cell.record for cell in planned if cell.record] + [cell.record for cell in stored.cells.values()]
    faults += used.staleness_lines((cell.spec, cell.parts) for cell in planned if not cell.record)
    if times:
        planned = reopen_for_timing(planned, folder, suite.timing, note, published=used)
    planned = refuse_undefined(planned, inputs, _refused)
    due = {
        group: members
        for group, members in groups_of(planned).items()
        if times and (fresh or timing_due(group, members, folder, suite.timing, lambda fault: None, published=used))
    }
    missing = [cell for cell in planned if cell.is_missing]
    taken = [*stored.timings.values(), *_timings_on_disk(planned, folder)]
    return [
        *faults,
        f"{summary(suite, planned)}; results in {out}",
        *(f"{_state(cell):8} {cell.spec.name}" for cell in planned),
        *(f"to time  {' · '.join(display_name(str(part)) for part in group)}" for group in due),
        *_training_lines(missing, inputs, records, workers),
        *_timing_lines([(inputs.rows(due[group][0].spec).task.name, group[1]) for group in due], taken),
        "nothing was run or written",
    ]


def _refused(cell: PlannedCell, reason: str) -> PlannedCell:
    return cell.failed(
        FailureRecord(key=cell.key, error=reason, refused=True, may_pass=False, traceback="", failed_at="")
    )


def _state(cell: PlannedCell) -> str:
    if cell.failure:
        return "refused" if cell.failure.refused else "failed"
    if cell.record:
        return "done"
    return "again" if cell.is_again else "to run"


def _timings_on_disk(cells: Iterable[PlannedCell], folder: RunFolder) -> list[BaseTimingRecord]:
    kinds = {cell.group: cell.kind for cell in cells}
    return [timing for group, kind in kinds.items() for timing in read_timings(folder.timing(*group), kind.timing)[0]]


@dataclass(frozen=True)
class Estimate:
    """Seconds that a cell trains, and which records that is derived from."""

    seconds: float
    source: str


def estimate_training(spec: BaseCellSpec, task: str, rows: int, records: Iterable[BaseRecord]) -> Estimate | None:
    """Estimate how long a cell trains, from recorded seconds of cells with the same backbone and label.

    Cells of the same task count as they are; otherwise those of other tasks, scaled by rows x epochs.

    Args:
        spec: the cell.
        task: the name that its task has in records.
        rows: its training rows.
        records: of finished cells, here or published.
    """
    alike = [
        record for record in records if (record.backbone, record.label) == (display_name(spec.backbone), spec.label)
    ]
    same_task = [record.train_seconds for record in alike if record.task == task]
    if same_task:
        return Estimate(median(same_task), "the same cell with other seeds or parameters")
    per_row = [record.train_seconds / (record.train_rows * _recorded_epochs(record)) for record in alike]
    if per_row:
        # Decoders train a number of steps, however many rows there are.
        epochs = spec.recipe.epochs if isinstance(spec.recipe, RecipeSettings) else 1
        return Estimate(median(per_row) * rows * epochs, "the same method on other tasks, by rows x epochs")
    return None


def _recorded_epochs(record: BaseRecord) -> int:
    recipe = record.key_parts.settings.get("recipe")
    default = RecipeSettings().epochs if record.key_parts.kind == "classification" else 1
    epochs = recipe.get("epochs", default) if isinstance(recipe, dict) else default
    return int(epochs)


def _training_lines(
    missing: Sequence[PlannedCell], inputs: Inputs, records: Sequence[BaseRecord], workers: int
) -> list[str]:
    if not missing:
        return []
    estimates = []
    for cell in missing:
        rows = inputs.rows(cell.spec)
        trained_on = rows.trained_on(cell.spec.recipe)
        estimates.append(estimate_training(cell.spec, rows.task.name, trained_on, records))
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return ["training: no estimate, since no cell with these backbones and methods is recorded yet"]
    seconds = sum(estimate.seconds for estimate in known) / len(known) * len(missing)
    sources = [f"{count} from {source}" for source, count in Counter(each.source for each in known).items()]
    sources += [f"{len(missing) - len(known)} at the mean of the others"] if len(known) < len(missing) else []
    parallel = f" with {workers} workers, if they do not slow each other down" if workers > 1 else ""
    return [f"training: about {_duration(seconds / workers)}{parallel} (cells: {'; '.join(sources)})"]


def _timing_lines(due: Sequence[tuple[str, str]], taken: Sequence[BaseTimingRecord]) -> list[str]:
    """Estimate the timings that are due, by task and backbone, from recorded ones of the same, or else of any."""
    if not due:
        return []
    by_group: dict[tuple[str, str], list[float]] = {}
    for timing in taken:
        seconds = sum(samples.total_seconds for contender in timing.contenders for samples in contender.samples)
        by_group.setdefault((timing.task, timing.backbone), []).append(seconds)
    if not by_group:
        return [f"timing: no estimate, since none is recorded yet; {len(due)} groups, one at a time"]
    everywhere = median(second for seconds in by_group.values() for second in seconds)
    own = [by_group.get((task, display_name(backbone))) for task, backbone in due]
    total = sum(median(seconds) if seconds else everywhere for seconds in own)
    return [f"timing: about {_duration(total)}, one group at a time (from recorded timings)"]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= _SHOWN_IN_MINUTES_FROM else f"{seconds:.0f} s"
