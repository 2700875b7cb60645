"""One cell: train, trace, replay the whole curve, choose knobs on validation data, check them live on test rows."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import set_seed

from benchmarks.analysis.select import choose_all
from benchmarks.measure.flops import FlopModel
from benchmarks.measure.intervals import score_interval
from benchmarks.measure.signals import signal_quantiles
from benchmarks.store.environment import describe_environment, now
from benchmarks.store.folders import (
    LOG_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    RunFolder,
    write_predictions,
    write_record,
)
from benchmarks.store.keys import code_hash
from benchmarks.store.records import CellRecord, CurvePoint, KeyParts, OperatingPoint
from benchmarks.store.spec import CellSpec, display_name
from benchmarks.store.targets import WITHIN_ONE_POINT, Budget, Target, in_words
from consistentee.data.instances import TaskData
from consistentee.data.metrics import score
from consistentee.engine.classify import classify_encoded
from consistentee.files import replacing
from consistentee.methods.method import Method, get_method, train_method
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.walk import sweep

_LIVE_BATCH_SIZE = 32
_SAME_VALUE = 1e-4  # two numeric answers that differ by less are the same answer, summed in another order

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """All knob values of a method, replayed on one split.

    Attributes:
        exits: 1-based exit layers, int64 [knobs, N].
        points: scores and exit histogram of every knob.
    """

    exits: Tensor
    points: list[CurvePoint]


@dataclass(frozen=True)
class Evaluation:
    """A trained model, traced on both splits, with every knob of its method replayed."""

    task: TaskData
    method: Method
    model: MultiExitModel
    knobs: list[float]
    rules: list[ExitRule]
    test_trace: Trace
    validation: Curve
    test: Curve
    chosen: dict[int, list[Target]]


def run_cell(spec: CellSpec, parts: KeyParts, task: TaskData, folder: RunFolder, *, command: str) -> CellRecord:
    """Run one cell and write its folder: predictions, log, trained model, and last the record that makes it done.

    Args:
        spec: the cell.
        parts: what its results depend on, see :func:`benchmarks.store.keys.key_parts`.
        task: the task, its rows already capped.
        folder: the run's folder.
        command: what the user typed.
    """
    cell = folder.cell(spec)
    method = get_method(spec.method, **spec.parameters)
    with _log_to(cell / LOG_FILE):
        _logger.info("%s, key %s", spec.name, parts.key)
        started = time.perf_counter()
        model = _train(spec, method, task, folder)
        train_seconds = time.perf_counter() - started
        _logger.info("trained in %.1f s", train_seconds)
        done = evaluate(task, method, model, spec.budgets, store=folder.stages)
        model.description.default_knob = default_knob(done)
        record = _record(spec, parts, done, train_seconds, command)
        with replacing(folder.model(parts.key)) as temporary:
            model.save_pretrained(temporary)
        chosen_exits = [done.test.exits[index] for index in done.chosen]
        write_predictions(cell / PREDICTIONS_FILE, prediction_table(done.test_trace, chosen_exits))
    write_record(cell / RECORD_FILE, record)
    return record


def _train(spec: CellSpec, method: Method, task: TaskData, folder: RunFolder) -> MultiExitModel:
    set_seed(spec.seed)  # methods may draw from the global generators; no cell depends on the one before
    model = MultiExitModel.from_backbone(spec.backbone, task.num_labels, label_names=task.label_names, seed=spec.seed)
    recipe = spec.recipe.to_recipe(spec.seed, folder.stages)
    return train_method(method, spec.method, model, task, recipe).eval()


def evaluate(
    task: TaskData,
    method: Method,
    model: MultiExitModel,
    budgets: Sequence[float],
    *,
    store: Path | None = None,
) -> Evaluation:
    """Trace a trained model on validation and test rows, replay every knob on both, and choose on validation.

    ``store`` keeps full-depth passes: methods that put another rule on the same model share them.
    """
    knobs = [float(knob) for knob in method.knob_values(model)]
    rules = [method.rule(model, knob) for knob in knobs]
    test_trace = record_trace(model, task.test, store=store)
    validation_trace = record_trace(model, task.validation, store=store)
    validation = replay_curve(rules, knobs, validation_trace, task.metrics)
    return Evaluation(
        task=task,
        method=method,
        model=model,
        knobs=knobs,
        rules=rules,
        test_trace=test_trace,
        validation=validation,
        test=replay_curve(rules, knobs, test_trace, task.metrics),
        chosen=choose_knobs(validation.points, task.metric, budgets, model.stock_layers),
    )


def replay_curve(rules: Sequence[ExitRule], knobs: Sequence[float], trace: Trace, metrics: Sequence[str]) -> Curve:
    """Replay one rule a knob on a trace: exit layers, scores and exit histograms."""
    exits = sweep(rules, trace)
    labels = trace.labels.numpy()
    points = []
    for knob, exit_layers in zip(knobs, exits, strict=True):
        answers = trace.predictions(exit_layers).numpy()
        points.append(
            CurvePoint(
                knob=knob,
                scores={metric: score(metric, labels, answers) for metric in metrics},
                exit_histogram=np.bincount(exit_layers.numpy(), minlength=trace.num_layers + 1)[1:].tolist(),
                token_layers=None if trace.live_tokens is None else float(trace.layers_run(exit_layers).mean()),
            )
        )
    return Curve(exits, points)


def choose_knobs(
    validation: Sequence[CurvePoint], metric: str, budgets: Sequence[float], num_layers: int
) -> dict[int, list[Target]]:
    """Choose operating points on validation data alone: index of the point -> what it was chosen for.

    A cell knows no other cell: a point is lost on its own last knob, the method's latest exits. ``num_layers`` is the
    stock model's L.
    """
    scores = [point.scores[metric] for point in validation]
    return choose_all(
        [*(Budget(layers_at_most=budget) for budget in budgets), WITHIN_ONE_POINT],
        [point.average_layers for point in validation],
        scores,
        num_layers=num_layers,
        reference=scores[-1],
    )


def default_knob(done: Evaluation) -> float:
    """Return the knob that a user of the saved model gets unasked: cheap, at hardly any loss."""
    return next(done.knobs[index] for index, targets in done.chosen.items() if WITHIN_ONE_POINT in targets)


def _record(spec: CellSpec, parts: KeyParts, done: Evaluation, train_seconds: float, command: str) -> CellRecord:
    task, trace = done.task, done.test_trace
    flops = FlopModel(done.model)
    points = [_operating_point(spec, done, flops, index) for index in done.chosen]
    for point in points:
        _logger.info("%s: knob %g, test %s", in_words(point.targets), point.knob, point.test.model_dump_json())
    return CellRecord(
        key=parts.key,
        key_parts=parts,
        code_hash=code_hash(),
        task=task.name,
        task_version=task.version,
        metric=task.metric,
        task_notes=task.notes,
        backbone=display_name(spec.backbone),
        method=display_name(spec.method),
        label=spec.label,
        parameters=done.method.parameters,
        knob_name=done.method.knob.name,
        seed=spec.seed,
        num_layers=done.model.stock_layers,
        train_rows=min(len(task.train), spec.recipe.max_rows or len(task.train)),
        validation_rows=len(task.validation),
        test_rows=len(task.test),
        full_flops=float(flops.full_flops(trace.lengths.numpy()).sum()),
        curve_validation=done.validation.points,
        curve_test=done.test.points,
        operating_points=points,
        train_seconds=train_seconds,
        command=command,
        environment=describe_environment(),
        finished_at=now(),
    )


def _operating_point(spec: CellSpec, done: Evaluation, flops: FlopModel, index: int) -> OperatingPoint:
    trace, exits = done.test_trace, done.test.exits[index]
    live = not done.method.replay_only
    rule = done.rules[index] if live else None
    row_flops = flops.row_flops(trace.lengths.numpy(), exits.numpy(), rule, trace.live_tokens)
    interval = score_interval(
        done.task.metric,
        trace.labels.numpy(),
        trace.predictions(exits).numpy(),
        resamples=spec.bootstrap_resamples,
        seed=spec.seed,
    )
    return OperatingPoint(
        knob=done.knobs[index],
        targets=done.chosen[index],
        validation=done.validation.points[index],
        test=done.test.points[index],
        score_interval=interval,
        flops=float(row_flops.sum()),
        live_rows=len(done.task.test) if live else 0,
        live_disagreements=_live_disagreements(done, index) if live else 0,
        signal_quantiles=signal_quantiles(done.rules[index], trace) if live else [],
    )


def _live_disagreements(done: Evaluation, index: int) -> int:
    """Classify the test rows for real, and count those whose exit layer or answer is not the replay's."""
    exits, rows = done.test.exits[index], done.test_trace.encodings
    live = classify_encoded(done.model, rows, done.rules[index], batch_size=_LIVE_BATCH_SIZE, sort_by_length=True)
    differs = (live.exit_layers != exits).numpy()
    differs |= ~same_answers(live.predictions.numpy(), done.test_trace.predictions(exits).numpy())
    return int(differs.sum())


def same_answers(first: NDArray, second: NDArray) -> NDArray[np.bool_]:
    """Compare answers row by row: classes must be equal, values of a regression nearly so."""
    if np.issubdtype(first.dtype, np.integer):
        return first == second
    return np.isclose(first, second, rtol=_SAME_VALUE, atol=_SAME_VALUE)


def prediction_table(trace: Trace, chosen_exits: Sequence[Tensor]) -> pd.DataFrame:
    """Return what :func:`benchmarks.store.folders.read_predictions` describes: no text, one line a test row."""
    full_depth = torch.full((len(trace),), trace.num_layers)
    columns = {
        "row": np.arange(len(trace)),
        "label": trace.labels.numpy(),
        "full_prediction": trace.predictions(full_depth).numpy(),
    }
    for layer in range(1, trace.num_layers + 1):
        columns[f"layer_prediction_{layer}"] = trace.view(layer).predictions.numpy()
    for number, exits in enumerate(chosen_exits):
        columns[f"prediction_{number}"] = trace.predictions(exits).numpy()
        columns[f"exit_layer_{number}"] = exits.numpy()
    return pd.DataFrame(columns)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write what this project and Python's warnings say into a file, which appears when the block ends well."""
    loggers = [logging.getLogger(name) for name in ("consistentee", "baselines", "benchmarks", "py.warnings")]
    with replacing(path) as temporary:
        handler = logging.FileHandler(temporary, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.captureWarnings(True)
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()
            logging.captureWarnings(False)
