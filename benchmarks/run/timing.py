"""Time one (task, backbone, seed): knobs of its cells and the stock model, in interleaved rounds in one process.

Which timings are due is found without torch. Timed are the knobs that tables mix at their budgets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pandas as pd

from benchmarks.kinds import KINDS, Inputs
from benchmarks.measure.environment import describe_conditions, describe_environment, now
from benchmarks.measure.knobs import around_budgets
from benchmarks.run.jobs import Job, RunContext
from benchmarks.run.plan import PlannedCell, Planner
from benchmarks.specs.base import Group, Regrouped, TimingSpec, group_name, short_name
from benchmarks.store.folders import HASHES_FILE, TIMING_FILE, keep_timing, parse_record, read_timings, write_timing
from benchmarks.store.hashes import file_fault
from benchmarks.store.keys import timing_key
from benchmarks.store.records import AnyRecord, TimedKnob, TimingRecord
from consistentee.methods.method import get_method
from consistentee.progress import begin_stage

if TYPE_CHECKING:
    from benchmarks.measure.clock import BatchTimes

Knobs = Mapping[str, Sequence[float]]
"""Key of a cell -> its knobs that are timed."""


def knobs_to_time(cells: Iterable[tuple[AnyRecord, pd.DataFrame]]) -> dict[str, list[float]]:
    """Choose the knobs to time of finished cells of one (task, backbone, seed), given as record and curve.

    They are the neighbours of the budgets on the curve of the test rows. Cells of a label that have one knob each are
    one curve together. Full depth is the stock model's, and rules that cannot run live have no times.
    """
    curves: dict[tuple[str, str], list[pd.DataFrame]] = {}
    found: dict[str, list[float]] = {}
    for record, curve in cells:
        own = record.key if curve["knob"].count() > 1 else ""
        found[record.key] = []
        if record.kind == "generation" or ("live_rows" in curve and curve["live_rows"].any()):
            points = curve[["knob", "layers"]].dropna(subset="layers")
            points = points.assign(key=record.key, num_layers=record.num_layers, kind=record.kind)
            curves.setdefault((record.label, own), []).append(points)
    for points in map(pd.concat, curves.values()):
        first = points.iloc[0]
        mixed = points.iloc[around_budgets(points["layers"], first["num_layers"], first["kind"])].dropna()
        if mixed.empty:  # drafts that cost more layers than full depth may still be faster
            mixed = points.dropna().nsmallest(1, "layers")
        for key, knob in mixed[["key", "knob"]].itertuples(index=False):
            found[key].append(float(knob))
    return found


class GroupTimes(NamedTuple):
    """How far the times of one (task, backbone, seed) are.

    Attributes:
        knobs: those of every finished cell that are to be timed.
        due: cells with a knob that has no times, whose trained model is there.
        lines: name the cells without any times, whose model is damaged or gone, for people.
    """

    knobs: Knobs
    due: list[PlannedCell]
    lines: list[str]


@dataclass(frozen=True)
class Timings:
    """The timings of a suite, taken and due."""

    planner: Planner

    @property
    def key(self) -> str:
        return timing_key(self.planner.suite.timing, self.planner.suite.kind)

    def taken(self, group: Group) -> list[TimingRecord]:
        """Return the timings of a group by the suite's protocol, those that are only published included."""
        found, faults = read_timings(self.planner.run.timing(*group))
        for fault in faults:
            self.planner.on_fault(fault)
        return [timing for timing in [*found, *self.only_published(group).values()] if timing.key == self.key]

    def only_published(self, group: Group) -> dict[str, TimingRecord]:
        """Return the published timings of a group that the run's folder lacks, by their files."""
        run, published = self.planner.run, self.planner.published
        return {
            file: timing
            for file, timing in (published.timings if published else {}).items()
            if (run.timings / file).parent == run.timing(*group) and not (run.timings / file).exists()
        }

    def of_group(self, cells: Sequence[PlannedCell]) -> GroupTimes:
        """Compare the knobs to time of the cells of a group with those that have times.

        Times at other knobs are enough where the model is gone.
        """
        knobs = knobs_to_time((cell.record, cell.curve(self.planner.run)) for cell in cells if cell.record)
        timed: dict[str, set[float | None]] = {}
        for one in (one for timing in self.taken(cells[0].spec.group) for one in timing.timed):
            timed.setdefault(one.cell_key, set()).add(one.knob)
        untimed = [cell for cell in cells if not timed.get(cell.key, set()).issuperset(knobs.get(cell.key, ()))]
        due = [cell for cell in untimed if self.has_model(cell)]
        known = {*timed, *(cell.key for cell in due)}
        lost = dict.fromkeys(cell.spec.label for cell in untimed if cell.key not in known)
        group = f"{group_name(cells[0].spec.group)}: {', '.join(lost)}"
        remedy = "not timed, because their trained models are damaged or gone; --fresh trains them again"
        return GroupTimes(knobs, due, [f"{group}: {remedy}"] if lost else [])

    def has_model(self, cell: PlannedCell) -> bool:
        """Check whether the trained model of a cell, which only timing needs, exists and is whole."""
        return file_fault(self.planner.run.model(cell.key) / HASHES_FILE, sealed=True) is None

    def keep_times_of_others(self, group: Group, cells: Iterable[PlannedCell]) -> str | None:
        """Rename the timing of a group that holds other cells than those timed next; return its new name."""
        place = self.planner.run.timing(*group)
        old, _ = parse_record(place / TIMING_FILE, TimingRecord)
        keys = {"", *(cell.key for cell in cells)}
        return keep_timing(place).name if old and any(one.cell_key not in keys for one in old.timed) else None


class TimingJob(Job[TimingRecord]):
    """The timing of one group: finished cells whose models are on disk, and the knobs to time."""

    shares_machine: ClassVar[bool] = False

    def __init__(self, context: RunContext, cells: Sequence[PlannedCell], knobs: Knobs, protocol: TimingSpec) -> None:
        self.cells = cells
        self.knobs = knobs
        self.protocol = protocol
        group, key = cells[0].spec.group, timing_key(protocol, cells[0].spec.kind)
        points = sum(len(knobs[cell.key]) for cell in cells)
        name = f"timing {group_name(group)}: {points} knobs and the stock model"
        super().__init__(context, name, key, group, context.folder.timing(*group))

    def read(self) -> TimingRecord | None:
        return parse_record(self.place / TIMING_FILE, TimingRecord)[0]

    def compute(self) -> None:
        from consistentee.deployment.timing import time_in_rounds
        from consistentee.models.base import chosen_device

        spec, folder, protocol = self.cells[0].spec, self.context.folder, self.protocol
        kind, rows = KINDS[spec.kind], Inputs(self.context.data_dir).rows(spec)
        # Methods first: the file of a method may define the classifier that its model is loaded with.
        methods = [get_method(cell.spec.method, **cell.spec.parameters) for cell in self.cells]
        begin_stage("loading the models")
        models: list[Any] = []
        for cell in self.cells:  # which may share weights
            models.append(kind.load_model(folder.model(cell.key), models).to(chosen_device()).eval())
        stock = kind.stock_model([cell.spec for cell in self.cells], models)
        timed_rows = kind.timed_rows(stock, spec, rows, protocol.rows)
        options = kind.timing_options(spec, rows, protocol)
        before = describe_environment() | describe_conditions()
        named: list[tuple[str, str, float | None]] = [("", kind.stock_label, None)]
        passes = [_Pass(0, kind.time_stock(stock, **options))]
        for cell, method, model in zip(self.cells, methods, models, strict=True):
            for knob in self.knobs[cell.key]:
                for setting in (None, *kind.regroupings(method, protocol)):
                    flight = {} if setting is None else dict(setting)
                    run = kind.time_method(method, model, knob, **options, **flight)
                    passes.append(_Pass(len(named), run, setting))
                named.append((cell.key, cell.spec.label, knob))
        sizes = [protocol.batch_sizes if one.regrouped is None else [one.regrouped.in_flight] for one in passes]
        runs, warmup = [one.run for one in passes], protocol.warmup_batches
        taken = time_in_rounds(runs, timed_rows, protocol.rows_by_size, sizes, rounds=protocol.rounds, warmup=warmup)
        lines = [line for one, by_size in zip(passes, taken, strict=True) for line in _lines(one, by_size)]
        times = pd.DataFrame(lines).dropna(axis="columns", how="all").round(9)  # to the nanosecond: the rest is noise
        in_step = times[times[["batch_size", "in_flight"]].eq(protocol.batch_sizes[0]).all(axis="columns")]
        sums = in_step.groupby("timed")[["layer_calls", "units"]].sum()
        record = TimingRecord(
            kind=spec.kind,
            key=self.key,
            task=rows.task.name,
            backbone=short_name(spec.backbone),
            seed=spec.seed,
            rounds=protocol.rounds,
            max_new_tokens=options.get("max_new_tokens"),
            timed=[
                TimedKnob(cell_key=key, label=label, knob=knob, average_layers=layers)
                for (key, label, knob), layers in zip(named, sums["layer_calls"] / sums["units"].clip(1), strict=True)
            ],
            environment_before=before,
            environment_after=describe_conditions(),
            command=self.context.command,
            finished_at=now(),
        )
        write_timing(self.place / TIMING_FILE, record, times)


class _Pass(NamedTuple):
    timed: int
    run: "Callable[[Sequence[Any]], BatchTimes]"
    regrouped: Regrouped | None = None


def _lines(one: _Pass, by_size: "Mapping[int, list[list[BatchTimes]]]") -> Iterator[dict[str, object]]:
    for size, rounds in by_size.items():
        for place, batches in enumerate(rounds):
            for number, batch in enumerate(batches):
                completed = batch.completed and [round(seconds, 9) for seconds in batch.completed]
                yield {
                    "timed": one.timed,
                    "batch_size": one.regrouped.batch_size if one.regrouped else size,
                    "in_flight": size,
                    "round": place,
                    "batch": number,
                    **asdict(batch),
                    "completed": completed,
                }
