"""Time one (task, backbone, seed): knobs of its cells and the stock model, in interleaved rounds in one process."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kinds import kind_named
from benchmarks.kinds.kind import AnyKind, CellRows
from benchmarks.measure.clock import time_contenders
from benchmarks.run.environment import describe_conditions, describe_environment, now
from benchmarks.run.plan import PlannedCell, TimedKnobs
from benchmarks.specs.base import Regrouped, TimingSpec, short_name
from benchmarks.store.folders import TIMING_FILE, RunFolder, write_record
from benchmarks.store.keys import timing_key
from benchmarks.store.timings import TimingRecord
from consistentee.methods.method import get_method
from consistentee.models.base import chosen_device
from consistentee.progress import begin_stage


class _Timed(NamedTuple):
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
) -> None:
    """Time knobs of the finished cells of one (task, backbone, seed), whose models are on disk; write the record."""
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
        for knob, setting in product(knobs[cell.key], (None, *kind.regroupings(method, protocol))):
            run = kind.time_method(method, model, knob, setting, **options)
            timed.append(_Timed(cell.key, cell.spec.label, knob, run, setting))
    sizes = [protocol.batch_sizes if way.regrouped is None else [way.regrouped.in_flight] for way in timed]
    taken = time_contenders([way.run for way in timed], timed_rows, protocol, sizes)
    record = TimingRecord.model_validate(
        {
            "kind": spec.kind,
            "key": timing_key(protocol, spec.kind),
            "task": rows.task.name,
            "backbone": short_name(spec.backbone),
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


def _contenders(
    kind: AnyKind, passes: Iterable[tuple[_Timed, Mapping[int, Any]]], protocol: TimingSpec, rows: int
) -> list[dict[str, Any]]:
    """Build the fields of the contenders; regrouped passes, which follow those in step, become further samples."""
    found: dict[tuple[str, float | None], dict[str, Any]] = {}
    for way, by_size in passes:
        contender = found.setdefault(
            (way.cell_key, way.knob),
            {
                "cell_key": way.cell_key,
                "label": way.label,
                "knob": way.knob,
                "average_layers": kind.average_layers(next(iter(by_size.values()))[0]),
                "samples": [],
            },
        )
        for size, rounds in by_size.items():
            batch_size, in_flight = (size, None) if way.regrouped is None else (way.regrouped.batch_size, size)
            timed_rows = min(rows, protocol.rows_at(size))
            contender["samples"].append(kind.samples(batch_size, timed_rows, rounds, in_flight))
    return list(found.values())


def load_models(kind: AnyKind, folders: Iterable[Path], device: torch.device) -> list[Any]:
    """Load trained models, which may share weights. Raises UserError."""
    models: list[Any] = []
    for folder in folders:
        models.append(kind.load_model(folder, models).to(device).eval())
    return models
