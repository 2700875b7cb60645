"""Time one (task, backbone, seed): knobs of its cells and the stock model, in interleaved rounds in one process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pandas as pd

from benchmarks.kinds import KINDS, Inputs
from benchmarks.measure.environment import describe_conditions, describe_environment, now
from benchmarks.run.jobs import Job, RunContext
from benchmarks.run.plan import Knobs, PlannedCell
from benchmarks.specs.base import Regrouped, TimingSpec, group_name, short_name
from benchmarks.store.folders import TIMING_FILE, parse_record, write_timing
from benchmarks.store.keys import timing_key
from benchmarks.store.records import TimedKnob, TimingRecord
from consistentee.methods.method import get_method
from consistentee.progress import begin_stage

if TYPE_CHECKING:
    from benchmarks.measure.clock import BatchTimes


class TimingJob(Job):
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
