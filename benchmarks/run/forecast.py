"""What a run would do and about how long it would train, without doing any of it: ``consistentee run --dry-run``."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.run.plan import (
    Inputs,
    PlannedCell,
    groups_of,
    plan_cells,
    refuse_another_kind,
    refuse_undefined,
    reopen_for_timing,
    summary,
    timing_due,
)
from benchmarks.run.published import Published, find_published
from benchmarks.specs.base import BaseCellSpec, BaseSuite, CellSpec, display_name
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.folders import RunFolder
from benchmarks.store.records import FailureRecord

_MEASURED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """How long a missing cell trains, and what that is concluded from."""

    seconds: float
    source: str


def plan_lines(
    suite: BaseSuite,
    filters: Filters | None = None,
    *,
    out: Path,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    remeasure: bool = False,
    workers: int = 1,
    published_dir: Path | None = None,
) -> list[str]:
    """Return the plan of a run, in lines for people; nothing in the results folder is changed.

    Takes what :func:`benchmarks.run.sweep.run_suite` takes, and raises the same errors.
    """
    folder = RunFolder(out)
    refuse_another_kind(suite, folder)
    published = Published() if fresh or remeasure else find_published(suite, published_dir, out)
    inputs = Inputs(data_dir, FileHashes(folder.fingerprints))
    faults: list[str] = []

    def note(fault: object) -> None:
        faults.append(f"{fault}: it would be set aside")

    planned = plan_cells(
        expand(suite, filters), inputs, folder, note, fresh=fresh, retry_failed=retry_failed, published=published
    )
    done = [cell for cell in planned if cell.record]
    not_used = [(cell, published.staleness(cell.spec, cell.parts)) for cell in planned if not cell.record]
    faults += [f"{cell.spec.name}: published, but {reason}" for cell, reason in not_used if reason]
    planned = reopen_for_timing(planned, folder, suite.timing, note, published=published)
    planned = refuse_undefined(planned, inputs, _refused)
    timings = [
        " · ".join(display_name(str(part)) for part in group)
        for group, cells in groups_of(planned).items()
        if fresh or timing_due(group, cells, folder, suite.timing, lambda fault: None, published=published)
    ]
    return [
        *faults,
        f"{summary(suite, planned)}; results in {out}",
        *(f"{_state(cell):8} {cell.spec.name}" for cell in planned),
        *(f"to time  {name}" for name in timings),
        *_time_lines([cell for cell in planned if cell.is_missing], done, inputs, workers),
        "nothing was run or written",
    ]


def _refused(cell: PlannedCell, reason: str) -> PlannedCell:
    failure = FailureRecord(key=cell.key, error=reason, refused=True, traceback="", failed_at="")
    return replace(cell, failure=failure)


def _state(cell: PlannedCell) -> str:
    if cell.failure:
        return "refused" if cell.failure.refused else "failed"
    return "done" if cell.record else "to run"


def _time_lines(missing: Sequence[PlannedCell], done: Sequence[PlannedCell], inputs: Inputs, workers: int) -> list[str]:
    if not missing:
        return []
    if not all(isinstance(cell.spec, CellSpec) for cell in missing):
        return [_generation_line(missing, done)]
    forecast = Forecast(done, lambda spec: _training_rows(spec, inputs), lambda spec: measured_rate(spec, inputs))
    estimates = [forecast.estimate(cell.spec) for cell in missing if isinstance(cell.spec, CellSpec)]
    minutes = sum(estimate.seconds for estimate in estimates) / workers / 60
    sources = [f"{n} from {s}" for s in dict.fromkeys(e.source for e in estimates) if (n := _count(estimates, s))]
    side_by_side = f" with {workers} workers that do not slow each other down" if workers > 1 else ""
    return [
        f"training: about {minutes:.0f} min{side_by_side} ({'; '.join(sources)}); "
        "stages that methods share are counted for each of them, passes over test rows and timings come on top"
    ]


def _generation_line(missing: Sequence[PlannedCell], done: Sequence[PlannedCell]) -> str:
    """Decoding takes most of the time, and how long texts become shows only when they are decoded."""
    alike = {cell.spec.label: cell.record.train_seconds for cell in done if cell.record}
    known = [alike[cell.spec.label] for cell in missing if cell.spec.label in alike]
    if not known:
        return "no time estimate: it needs a finished cell of the same method"
    return f"training: about {sum(known) / 60:.0f} min for {len(known)} of {len(missing)} cells, as other cells took"


def _count(estimates: Sequence[Estimate], source: str) -> int:
    return sum(estimate.source == source for estimate in estimates)


def _training_rows(spec: CellSpec, inputs: Inputs) -> int:
    rows = len(inputs.rows(spec).training.train)
    return min(rows, spec.recipe.max_rows or rows)


class Forecast:
    """Estimates training times from finished cells, or else from a rate, measured once a backbone, batch and length.

    Args:
        done: finished cells of the suite.
        rows: training rows of a cell.
        rate: seconds a row and epoch, measured now.
    """

    def __init__(
        self,
        done: Sequence[PlannedCell],
        rows: Callable[[CellSpec], int],
        rate: Callable[[CellSpec], float],
    ) -> None:
        self._done = done
        self._rows = rows
        self._rate = rate
        self._rates: dict[tuple[object, ...], float] = {}

    def estimate(self, spec: CellSpec) -> Estimate:
        """Estimate one cell: as its like with another seed, by the rows of its like elsewhere, or by a rate."""
        same_task = self._seconds(lambda other: other.group[:2] == spec.group[:2] and other.label == spec.label)
        if same_task:
            return Estimate(median(same_task), "the same cell with other seeds or parameters")
        per_row = [
            cell.record.train_seconds / self._row_epochs(cell.spec)
            for cell in self._done
            if cell.record
            and isinstance(cell.spec, CellSpec)
            and (cell.spec.backbone, cell.spec.label) == (spec.backbone, spec.label)
        ]
        if per_row:
            return Estimate(
                median(per_row) * self._row_epochs(spec), "the same method on other tasks, by rows x epochs"
            )
        return Estimate(self._measured(spec) * self._row_epochs(spec), "rows x epochs at a rate measured just now")

    def _seconds(self, alike: Callable[[BaseCellSpec], bool]) -> list[float]:
        return [cell.record.train_seconds for cell in self._done if cell.record and alike(cell.spec)]

    def _row_epochs(self, spec: CellSpec) -> int:
        return self._rows(spec) * spec.recipe.epochs

    def _measured(self, spec: CellSpec) -> float:
        kind = (spec.backbone, spec.recipe.batch_size, spec.recipe.max_length)
        if kind not in self._rates:
            self._rates[kind] = self._rate(spec)
        return self._rates[kind]


def measured_rate(spec: CellSpec, inputs: Inputs) -> float:
    """Train a cell's backbone jointly for a few steps on its own first rows: seconds a row, for one epoch."""
    from consistentee.models.encoder import MultiExitModel
    from consistentee.training.stages import train_jointly

    task = inputs.rows(spec).task
    model = MultiExitModel.from_backbone(spec.backbone, task.num_labels, label_names=task.label_names)
    batch = min(spec.recipe.batch_size, len(task.train))
    recipe = replace(spec.recipe.to_recipe(seed=0), epochs=1, batch_size=batch)
    train_jointly(model, task, replace(recipe, max_rows=batch))  # the first step is slow
    rows = min(_MEASURED_STEPS * batch, len(task.train))
    started = time.perf_counter()
    train_jointly(model, task, replace(recipe, max_rows=rows))
    return (time.perf_counter() - started) / rows
