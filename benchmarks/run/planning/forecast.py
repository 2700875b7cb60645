"""What a run would do and about how long it would take, without doing any of it: ``consistentee run --dry-run``."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from benchmarks.run.planning.plan import (
    Inputs,
    PlannedCell,
    groups_of,
    of_other_parameters,
    plan_cells,
    refuse_another_kind,
    refuse_undefined,
    reopen_for_timing,
    summary,
    timing_due,
)
from benchmarks.run.planning.published import Published, find_published
from benchmarks.specs.base import BaseCellSpec, BaseSuite, TimingSpec, display_name
from benchmarks.specs.suites import Filters, expand
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.folders import RunFolder
from benchmarks.store.records import FailureRecord
from consistentee.training.recipe import RecipeSettings

_A_MINUTE = 90.0  # seconds from which a time is told in minutes


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

    cells = expand(suite, filters)
    for fault in of_other_parameters(cells, folder):
        note(fault)
    planned = plan_cells(cells, inputs, folder, note, fresh=fresh, retry_failed=retry_failed, published=published)
    done = [cell for cell in planned if cell.record]
    faults += published.staleness_lines((cell.spec, cell.parts) for cell in planned if not cell.record)
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
        *_time_lines([cell for cell in planned if cell.is_missing], done, inputs, suite.timing, workers),
        "nothing was run or written",
    ]


def _refused(cell: PlannedCell, reason: str) -> PlannedCell:
    failure = FailureRecord(key=cell.key, error=reason, refused=True, traceback="", failed_at="")
    return replace(cell, failure=failure)


def _state(cell: PlannedCell) -> str:
    if cell.failure:
        return "refused" if cell.failure.refused else "failed"
    if cell.record:
        return "done"
    return "again" if cell.is_again else "to run"


def _time_lines(
    missing: Sequence[PlannedCell], done: Sequence[PlannedCell], inputs: Inputs, protocol: TimingSpec, workers: int
) -> list[str]:
    if not missing:
        return []
    from benchmarks.run.planning.rehearsal import Rehearsal

    rehearsal = Rehearsal(inputs.rows, protocol)
    forecast = Forecast(done, lambda spec: inputs.rows(spec).trained_on(spec.recipe), rehearsal.training)
    estimates = [forecast.estimate(cell.spec) for cell in missing]
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return ["no time estimate: nothing is finished, and no method could be rehearsed"]
    # What there was no time to rehearse is taken to be as those that were, but for what they share.
    own = sum(estimate.seconds for estimate in known) - rehearsal.shared
    training = rehearsal.shared + own * len(missing) / len(known)
    counts = Counter(estimate.source for estimate in known)
    sources = [f"{count} from {source}" for source, count in counts.items()]
    sources += [f"{len(missing) - len(known)} as the others"] if len(known) < len(missing) else []
    besides = [found for cell in missing if (found := rehearsal.besides(cell.spec))]
    more = "passes over test rows and timings come on top"
    if besides:
        measuring, timing = (len(missing) * fmean(seconds) for seconds in zip(*besides, strict=True))
        more = f"measuring {_minutes(measuring / workers)} and timing {_minutes(timing)} come on top"
    side_by_side = f" with {workers} workers that do not slow each other down" if workers > 1 else ""
    return [f"training: about {_minutes(training / workers)}{side_by_side} (cells: {'; '.join(sources)}); {more}"]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= _A_MINUTE else f"{seconds:.0f} s"


class Forecast:
    """Estimates training times, of either kind: from finished cells, or else from a rehearsal on this machine.

    Args:
        done: finished cells of the suite.
        rows: training rows of a cell.
        rehearse: seconds that a cell trains, as a rehearsal has them; None where it has not.
    """

    def __init__(
        self,
        done: Sequence[PlannedCell],
        rows: Callable[[BaseCellSpec], int],
        rehearse: Callable[[BaseCellSpec], float | None],
    ) -> None:
        self._done = done
        self._rows = rows
        self._rehearse = rehearse

    def estimate(self, spec: BaseCellSpec) -> Estimate | None:
        """Estimate one cell: as its like with another seed, by the rows of its like elsewhere, or by a rehearsal."""
        same_task = [
            cell.record.train_seconds
            for cell in self._done
            if cell.record and (*cell.group[:2], cell.spec.label) == (*spec.group[:2], spec.label)
        ]
        if same_task:
            return Estimate(median(same_task), "the same cell with other seeds or parameters")
        per_row = [
            cell.record.train_seconds / self._work(cell.spec)
            for cell in self._done
            if cell.record and (cell.spec.backbone, cell.spec.label) == (spec.backbone, spec.label)
        ]
        if per_row:
            return Estimate(median(per_row) * self._work(spec), "the same method on other tasks, by rows x epochs")
        seconds = self._rehearse(spec)
        return None if seconds is None else Estimate(seconds, "a rehearsal just now: a few rows, a step of every stage")

    def _work(self, spec: BaseCellSpec) -> int:
        """Return rows times epochs; decoders count their steps, whatever the rows are."""
        return self._rows(spec) * (spec.recipe.epochs if isinstance(spec.recipe, RecipeSettings) else 1)
