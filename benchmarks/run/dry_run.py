"""Describe what a run would do, and about how long it would take: ``consistentee run --dry-run``. Trains nothing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.run.plan import PlannedCell, Planner, Published, groups_of, summary
from benchmarks.specs.base import BaseCellSpec, display_name
from benchmarks.specs.suites import Filters
from benchmarks.store.folders import Fault, read_timings
from benchmarks.store.records import BaseRecord, BaseTimingRecord
from consistentee.training.recipe import RecipeSettings

_SHOWN_IN_MINUTES_FROM = 90.0  # seconds


def plan_lines(
    planner: Planner,
    filters: Filters,
    *,
    fresh: bool,
    retry_failed: bool,
    times: bool,
    workers: int,
    recorded: Published,
) -> list[str]:
    """Describe the plan of a run in lines for people.

    Args:
        planner: of the run; its ``on_fault`` is not called.
        filters: the part of the suite.
        fresh, retry_failed, times: see :meth:`Planner.plan`.
        workers: cells that run at once.
        recorded: published results whose seconds count for the estimate, even if the run does not start from them.
    """
    faults: dict[str, None] = {}

    def note(fault: Fault) -> None:
        faults[f"{fault}: it would be set aside"] = None

    planner = replace(planner, on_fault=note)
    planned = planner.plan(filters, fresh=fresh, retry_failed=retry_failed, times=times)
    due = [members for members in groups_of(planned).values() if times and (fresh or planner.is_timing_due(members))]
    found = [*(cell.record or cell.earlier for cell in planned), *(cell.record for cell in recorded.cells.values())]
    records = {record.key: record for record in found if record}
    taken = list(recorded.timings.values())
    for group, members in groups_of(planned).items():
        taken += read_timings(planner.folder.timing(*group), members[0].kind.timing)[0]
    return [
        *faults,
        *planner.published.staleness_lines(planned),
        f"{summary(planner.suite, planned)}; results in {planner.folder.root}",
        *(f"{_state(cell):8} {cell.spec.name}" for cell in planned),
        *(f"to time  {' · '.join(display_name(str(part)) for part in members[0].group)}" for members in due),
        *_training_lines([cell for cell in planned if cell.is_missing], planner, list(records.values()), workers),
        *_timing_lines(
            [(planner.inputs.rows(cells[0].spec).task.name, cells[0].spec.backbone) for cells in due], taken
        ),
        "nothing was run or written",
    ]


def _state(cell: PlannedCell) -> str:
    if cell.failure:
        return "refused" if cell.is_refused else "failed"
    if cell.record:
        return "done"
    return "again" if cell.earlier else "to run"


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
    missing: Sequence[PlannedCell], planner: Planner, records: Sequence[BaseRecord], workers: int
) -> list[str]:
    if not missing:
        return []
    known = []
    for cell in missing:
        rows = planner.inputs.rows(cell.spec)
        estimate = estimate_training(cell.spec, rows.task.name, rows.trained_on(cell.spec.recipe), records)
        known += [] if estimate is None else [estimate]
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
