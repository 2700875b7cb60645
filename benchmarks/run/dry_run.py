"""Describe a run and estimate its time, without training: ``consistentee run --dry-run``."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.run.plan import PlannedCell, Planner, Work, groups_of, summary
from benchmarks.specs.base import group_name, short_name
from benchmarks.store.folders import Fault

_SHOWN_IN_MINUTES_FROM = 90.0  # seconds


def plan_lines(planner: Planner, work: Work, workers: int) -> list[str]:
    """Describe the plan of a run in lines for people; nothing is set aside."""
    faults: dict[str, None] = {}

    def note(fault: Fault) -> None:
        faults[f"{fault}: it would be set aside"] = None

    planner = replace(planner, on_fault=note)
    planned = planner.plan(work)
    missing = [cell for cell in planned if cell.is_missing]
    groups = list(groups_of(planned).values()) if work.times else []
    due = [cells for cells in groups if work.fresh or planner.is_timing_due(cells)]
    found = [*(cell.record for cell in planned), *(cell.record for cell in planner.published.cells.values())]
    records = {record.key: record for record in found if record}.values()
    trained = [((record.task, record.backbone, record.label), record.train_seconds) for record in records]
    timings = [*planner.published.timings.values()]
    timings += [timing for cells in groups for timing in planner.timings_of(cells[0].group)]
    timed = [((timing.task, timing.backbone), timing.total_seconds) for timing in timings]

    def names(cell: PlannedCell) -> tuple[str, str]:
        return short_name(cell.spec.task), short_name(cell.spec.backbone)

    return [
        *faults,
        *planner.published.staleness_lines(planned),
        f"{summary(planner.suite, planned)}; results in {planner.folder.root}",
        *(f"{cell.state:8} {cell.spec.name}" for cell in planned),
        *(f"to time  {group_name(cells[0].group)}" for cells in due),
        *(line for cells in groups if (line := planner.untimed_line(cells))),
        *_estimate("training", [(*names(cell), cell.spec.label) for cell in missing], trained, workers),
        *_estimate("timing", [names(cells[0]) for cells in due], timed),
        "nothing was run or written",
    ]


def _estimate(
    what: str, wanted: Sequence[Hashable], recorded: Iterable[tuple[Hashable, float]], workers: int = 1
) -> list[str]:
    seconds: dict[Hashable, list[float]] = {}
    for name, taken in recorded:
        seconds.setdefault(name, []).append(taken)
    known = [median(seconds[name]) for name in wanted if name in seconds]
    if not wanted:
        return []
    if not known:
        return [f"{what}: no estimate, since none of it is recorded yet"]
    total = sum(known) / workers
    shown = f"{total / 60:.0f} min" if total >= _SHOWN_IN_MINUTES_FROM else f"{total:.0f} s"
    parallel = f" with {workers} workers, if they do not slow each other down" if workers > 1 else ""
    return [f"{what}: about {shown}{parallel}, from the recorded seconds of {len(known)} of {len(wanted)}"]
