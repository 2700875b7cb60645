"""Time one (task, backbone, seed): knobs of its cells and the stock model, in interleaved rounds in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import AnyKind, CellRows
from benchmarks.measure.clock import time_contenders
from benchmarks.run.plan import PlannedCell, TimedKnobs
from benchmarks.specs.base import TimingSpec, display_name
from benchmarks.specs.generation import Regrouped
from benchmarks.store.environment import describe_conditions, describe_environment, now
from benchmarks.store.folders import TIMING_FILE, RunFolder, write_record
from benchmarks.store.keys import timing_key
from benchmarks.store.records import BaseContender, BaseSamples, BaseTimingRecord
from consistentee.errors import UserError
from consistentee.files import set_aside
from consistentee.methods.method import get_method
from consistentee.models.base import chosen_device
from consistentee.progress import begin_stage


@dataclass(frozen=True)
class _Timed:
    """A contender before it is timed; ``run`` answers a batch and returns its times.

    Without ``regrouped`` it answers batch by batch; regrouped runs become samples of the same contender.
    """

    cell_key: str
    label: str
    knob: float | None
    run: Callable[[Sequence[Any]], Any]
    regrouped: Regrouped | None = None


def run_timing(
    cells: Sequence[PlannedCell],
    knobs: TimedKnobs,
    rows: CellRows[Any],
    protocol: TimingSpec,
    folder: RunFolder,
    *,
    command: str,
) -> BaseTimingRecord:
    """Time finished cells of one (task, backbone, seed), and write the timing record.

    Args:
        cells: finished cells with their models on disk.
        knobs: the knobs to time of each.
        rows: their rows.
        protocol: the timing protocol.
        folder: the run's folder.
        command: the command line of the run.
    """
    spec = cells[0].spec
    kind = kind_named(spec.kind)
    # Methods first: the file of a method may define the classifier that its model is loaded with.
    methods = [get_method(cell.spec.method, **cell.spec.parameters) for cell in cells]
    begin_stage("loading the models")
    models = load_models(kind, [folder.model(cell.key) for cell in cells], chosen_device())
    stock = kind.stock_model([cell.spec for cell in cells], models)
    timed_rows = kind.timed_rows(stock, spec, rows, protocol.rows)
    options = kind.timing_options(spec, rows, protocol)
    before = describe_environment() | describe_conditions()
    timed = [_Timed("", kind.stock_label, None, kind.time_stock(stock, **options))]
    for cell, method, model in zip(cells, methods, models, strict=True):
        for knob in knobs[cell.key]:
            timed.append(_Timed(cell.key, cell.spec.label, knob, kind.time_method(method, model, knob, **options)))
            for setting, run in kind.time_regrouped(method, model, knob, protocol, **options):
                timed.append(_Timed(cell.key, cell.spec.label, knob, run, setting))
    sizes = [protocol.batch_sizes if way.regrouped is None else [way.regrouped.in_flight] for way in timed]
    taken = time_contenders([contender.run for contender in timed], timed_rows, protocol, sizes)
    record = kind.timing.model_validate(
        {
            "key": timing_key(protocol, spec.kind),
            "task": rows.task.name,
            "backbone": display_name(spec.backbone),
            "seed": spec.seed,
            "rounds": protocol.rounds,
            **options,
            "contenders": _contenders(kind, list(zip(timed, taken, strict=True)), protocol, len(timed_rows)),
            "environment_before": before,
            "environment_after": describe_conditions(),
            "command": command,
            "finished_at": now(),
        }
    )
    write_record(folder.timing(*cells[0].group) / TIMING_FILE, record)
    return record


def _contenders(
    kind: AnyKind,
    passes: Sequence[tuple[_Timed, Mapping[int, Any]]],
    protocol: TimingSpec,
    rows: int,
) -> list[BaseContender]:
    return [
        kind.contender(
            cell_key=contender.cell_key,
            label=contender.label,
            knob=contender.knob,
            average_layers=kind.average_layers(next(iter(by_size.values()))[0]),
            samples=[
                _samples(kind, way, size, min(rows, protocol.rows_at(size)), rounds)
                for way, of_way in passes
                if (way.cell_key, way.knob) == (contender.cell_key, contender.knob)
                for size, rounds in of_way.items()
            ],
        )
        for contender, by_size in passes
        if contender.regrouped is None
    ]


def _samples(kind: AnyKind, way: _Timed, size: int, rows: int, rounds: Sequence[Sequence[Any]]) -> BaseSamples:
    """Build the samples of one run of a contender that got ``size`` rows at once."""
    if way.regrouped is None:
        return kind.samples(size, rows, rounds)
    return kind.samples(way.regrouped.batch_size, rows, rounds).model_copy(update={"in_flight": size})


def load_models(kind: AnyKind, folders: Sequence[Path], device: torch.device) -> list[Any]:
    """Load trained models; one that cannot be loaded is set aside, so that the next run trains it again."""
    models: list[Any] = []
    for folder in folders:
        try:
            model = kind.load_model(folder, models)
        except UserError:
            set_aside(folder, "damaged")
            raise
        models.append(model.to(device).eval())
    return models
