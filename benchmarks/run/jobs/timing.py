"""The timing run of one (task, backbone, seed): knobs of its cells and the stock model, one process, one clock."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kinds.kind import Kind, KindFunctions, functions_of, kind_named
from benchmarks.kinds.rows import CellRows
from benchmarks.measure.clock import time_contenders
from benchmarks.run.planning.plan import PlannedCell
from benchmarks.run.planning.timed_knobs import TimedKnobs
from benchmarks.specs.base import TimingSpec, display_name
from benchmarks.specs.generation import Regrouped
from benchmarks.store.environment import describe_conditions, describe_environment, now
from benchmarks.store.folders import TIMING_FILE, RunFolder, write_record
from benchmarks.store.keys import timing_key
from benchmarks.store.records import BaseContender, BaseSamples, BaseTimingRecord
from consistentee.errors import UserError
from consistentee.files import set_aside
from consistentee.methods.method import AnyMethod, get_method
from consistentee.progress import begin_stage


@dataclass(frozen=True)
class _Timed:
    """A contender before it is timed; ``run`` answers a batch, and returns what the clock said."""

    cell_key: str
    label: str
    knob: float | None
    run: Callable[[Sequence[Any]], Any]
    regrouped: Regrouped | None = None

    @property
    def is_main(self) -> bool:
        """Whether it answers batch by batch; what regroups is another way of the contender before it."""
        return self.regrouped is None

    def sizes(self, protocol: TimingSpec) -> Sequence[int]:
        """Return how many rows it is given at once."""
        return protocol.batch_sizes if self.regrouped is None else [self.regrouped.in_flight]


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
        knobs: what is timed of each.
        rows: their rows.
        protocol: how to time.
        folder: the run's folder.
        command: what the user typed.
    """
    spec = cells[0].spec
    kind, functions = kind_named(spec.kind), functions_of(spec.kind)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Methods first: the file of one may bring the kind of classifier that its model is loaded with.
    methods = [get_method(cell.spec.method, **cell.spec.parameters) for cell in cells]
    begin_stage("loading the models")
    models = load_models(functions, [folder.model(cell.key) for cell in cells], device)
    stock = functions.stock_model([cell.spec for cell in cells], models)
    timed_rows = functions.timed_rows(stock, spec, rows, protocol.rows)
    options = functions.timing_options(spec, rows, protocol)
    before = describe_environment() | describe_conditions()
    timed = [_Timed("", functions.STOCK, None, functions.stock_contender(stock, **options))]
    for cell, method, model in zip(cells, methods, models, strict=True):
        own = knobs[cell.key]
        timed += _ways(cell, method, model, own, functions=functions, protocol=protocol, options=options)
    sizes = [contender.sizes(protocol) for contender in timed]
    taken = time_contenders([contender.run for contender in timed], timed_rows, protocol, sizes)
    record = kind.timing(
        key=timing_key(protocol, spec.kind),
        task=rows.task.name,
        backbone=display_name(spec.backbone),
        seed=spec.seed,
        rounds=protocol.rounds,
        **options,
        contenders=_contenders(kind, functions, list(zip(timed, taken, strict=True)), protocol, len(timed_rows)),
        environment_before=before,
        environment_after=describe_conditions(),
        command=command,
        finished_at=now(),
    )
    write_record(folder.timing(*cells[0].group) / TIMING_FILE, record)
    return record


def _ways(
    cell: PlannedCell,
    method: AnyMethod,
    model: Any,
    knobs: Sequence[float],
    *,
    functions: KindFunctions,
    protocol: TimingSpec,
    options: Mapping[str, Any],
) -> Iterator[_Timed]:
    """Yield what is timed of a cell: every knob batch by batch, and then each way of regrouping it."""
    for knob in knobs:
        run = functions.contender(method, model, knob, **options)
        yield _Timed(cell.key, cell.spec.label, knob, run)
        for setting, run in functions.regrouping_contenders(method, model, knob, protocol, **options):
            yield _Timed(cell.key, cell.spec.label, knob, run, setting)


def _contenders(
    kind: Kind,
    functions: KindFunctions,
    passes: Sequence[tuple[_Timed, Mapping[int, Any]]],
    protocol: TimingSpec,
    rows: int,
) -> list[BaseContender]:
    """Return what a record holds of the passes: a contender's ways are in one, whose samples tell them apart."""
    return [
        kind.contender(
            cell_key=contender.cell_key,
            label=contender.label,
            knob=contender.knob,
            average_layers=functions.average_layers(next(iter(by_size.values()))[0]),
            samples=[
                _samples(functions, way, size, min(rows, protocol.rows_at(size)), rounds)
                for way, of_way in passes
                if (way.cell_key, way.knob) == (contender.cell_key, contender.knob)
                for size, rounds in of_way.items()
            ],
        )
        for contender, by_size in passes
        if contender.is_main
    ]


def _samples(
    functions: KindFunctions, way: _Timed, size: int, rows: int, rounds: Sequence[Sequence[Any]]
) -> BaseSamples:
    """Return the samples of one way of a contender, which was given ``size`` rows at once."""
    if way.regrouped is None:
        return functions.samples(size, rows, rounds)
    return functions.samples(way.regrouped.batch_size, rows, rounds).model_copy(update={"in_flight": size})


def load_models(functions: KindFunctions, folders: Sequence[Path], device: torch.device) -> list[Any]:
    """Load trained models; one that cannot be loaded is set aside, so that the next run makes it again."""
    models: list[Any] = []
    for folder in folders:
        try:
            model = functions.load_model(folder, models)
        except UserError:
            set_aside(folder, "damaged")
            raise
        models.append(model.to(device).eval())
    return models
