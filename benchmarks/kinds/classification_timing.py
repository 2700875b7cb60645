"""The timing run of one (task, backbone, seed): its operating points and the stock model, one process, one clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure.clock import Runner, time_contenders
from benchmarks.run.plan import PlannedCell, timed_points
from benchmarks.store.environment import describe_conditions, describe_environment, now
from benchmarks.store.folders import TIMING_FILE, RunFolder, set_aside, write_record
from benchmarks.store.keys import timing_key
from benchmarks.store.records import Contender, TimingRecord
from benchmarks.store.spec import TimingSpec, display_name
from consistentee.data.encoding import Encoding
from consistentee.data.instances import TaskData
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.errors import UserError
from consistentee.methods.method import Method, get_method
from consistentee.models.classifiers import LinearClassifier
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule

STOCK = "stock model"
_FULL = "full"
_COUNTING_BATCH_SIZE = 32


@dataclass(frozen=True)
class _Timed:
    """A contender before it is timed."""

    cell_key: str
    label: str
    knob: float | None
    average_layers: float
    runner: Runner


def run_timing(
    cells: Sequence[PlannedCell],
    task: TaskData,
    protocol: TimingSpec,
    folder: RunFolder,
    *,
    command: str,
) -> TimingRecord:
    """Time the operating points of finished cells of one (task, backbone, seed), and write the timing record.

    Args:
        cells: finished cells with their models on disk.
        task: their task.
        protocol: how to time.
        folder: the run's folder.
        command: what the user typed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Methods first: the file of one may bring the kind of classifier that its model is loaded with.
    methods = [get_method(cell.spec.method, **cell.spec.parameters) for cell in cells]
    models = {cell.key: _load(folder.model(cell.key)).to(device) for cell in cells}
    stock = _stock_model(cells, models)
    rows = stock.tokenize(task.test.texts[: protocol.rows])
    before = describe_environment() | describe_conditions()
    timed = [_stock_contender(stock)]
    for cell, method in zip(cells, methods, strict=True):
        timed += _contenders(cell, method, models[cell.key], rows, protocol)
    samples = time_contenders([contender.runner for contender in timed], rows, protocol, device)
    spec = cells[0].spec
    record = TimingRecord(
        key=timing_key(protocol, "classification"),
        task=task.name,
        backbone=display_name(spec.backbone),
        seed=spec.seed,
        rounds=protocol.rounds,
        contenders=[
            Contender(
                cell_key=contender.cell_key,
                label=contender.label,
                knob=contender.knob,
                average_layers=contender.average_layers,
                samples=measured,
            )
            for contender, measured in zip(timed, samples, strict=True)
        ],
        environment_before=before,
        environment_after=describe_conditions(),
        command=command,
        finished_at=now(),
    )
    write_record(folder.timing(*cells[0].group) / TIMING_FILE, record)
    return record


def _load(folder: Path) -> MultiExitModel:
    """Load a model; one that cannot be loaded is set aside, so that the next run makes it again."""
    try:
        return MultiExitModel.from_pretrained(folder).eval()
    except UserError:
        set_aside(folder, "damaged")
        raise


def _stock_model(cells: Sequence[PlannedCell], models: dict[str, MultiExitModel]) -> MultiExitModel:
    """Return what stands for the stock model: the full one where there is one; time does not tell weights.

    Else the first with a linear last classifier, since a method's own kind of classifier costs more than the stock one.
    """
    full = [models[cell.key] for cell in cells if cell.spec.method == _FULL]
    linear = [model for model in models.values() if isinstance(model.classifier(model.num_layers), LinearClassifier)]
    return next(iter([*full, *linear, *models.values()]))


def _stock_contender(model: MultiExitModel) -> _Timed:
    def run(batch: Sequence[Encoding]) -> object:
        return stock_encoded(model, batch, batch_size=len(batch))

    return _Timed("", STOCK, None, float(model.stock_layers), Runner(STOCK, run))


def _contenders(
    cell: PlannedCell, method: Method, model: MultiExitModel, rows: Sequence[Encoding], protocol: TimingSpec
) -> list[_Timed]:
    assert cell.record is not None
    return [
        _contender(cell, model, method.rule(model, point.knob), point.knob, rows)
        for point in timed_points(cell.record, protocol)
    ]


def _contender(
    cell: PlannedCell, model: MultiExitModel, rule: ExitRule, knob: float, rows: Sequence[Encoding]
) -> _Timed:
    def run(batch: Sequence[Encoding]) -> object:
        return classify_encoded(model, batch, rule, batch_size=len(batch))

    layers = classify_encoded(model, rows, rule, batch_size=_COUNTING_BATCH_SIZE).layers_run
    label = cell.spec.label
    return _Timed(cell.key, label, knob, float(layers.mean()), Runner(f"{label} at {knob:g}", run))
