"""Cells of classification: replay the whole curve, choose knobs on validation data, check them live on test rows.

Their names are those of :class:`benchmarks.kinds.kind.KindFunctions`, as generation's are.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.kinds.instance_curves import Evaluation, choose_knobs, replay_curve
from benchmarks.kinds.instance_findings import hull_point, operating_point, prediction_table, validation_table
from benchmarks.kinds.rows import CellRows
from benchmarks.measure.clock import timed
from benchmarks.measure.flops import FlopModel
from benchmarks.specs.base import CellSpec, TimingSpec
from benchmarks.specs.targets import in_words
from benchmarks.store.folders import PREDICTIONS_FILE, VALIDATION_FILE
from benchmarks.store.records import TimingSamples
from consistentee.data.encoding import Encoding
from consistentee.data.instances import TaskData
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.methods.method import Method
from consistentee.models.classifiers import LinearClassifier
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace
from consistentee.training.loop import training_device
from consistentee.training.precision import precision_used

STOCK = "stock model"
_FULL = "full"

_logger = logging.getLogger(__name__)


def build_model(spec: CellSpec, rows: CellRows[TaskData]) -> MultiExitModel:
    """Return the backbone of a cell with untrained exits."""
    task = rows.task
    return MultiExitModel.from_backbone(spec.backbone, task.num_labels, label_names=task.label_names, seed=spec.seed)


def choose(
    spec: CellSpec,
    rows: CellRows[TaskData],
    method: Method,
    model: MultiExitModel,
    *,
    key: str = "",
    store: Path | None = None,
) -> Evaluation:
    """Trace a trained model on validation and test rows, replay every knob on both, and choose on validation.

    ``store`` keeps full-depth passes, under what they depend on: methods that put another rule on the same model share
    them.
    """
    task = rows.task
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
        validation_trace=validation_trace,
        test_trace=test_trace,
        validation=validation,
        test=replay_curve(rules, knobs, test_trace, task.metrics),
        chosen=choose_knobs(validation.points, task.metric, spec.budgets, model.stock_layers),
    )


def evaluate(spec: CellSpec, rows: CellRows[TaskData], chosen: Evaluation) -> Evaluation:
    """Return what was chosen: the test rows have been replayed on the way."""
    return chosen


def findings(spec: CellSpec, done: Evaluation) -> dict[str, Any]:
    """Return the fields of the record that only classification has, or counts in its own way."""
    flops = FlopModel(done.model)
    points = [operating_point(spec, done, flops, index) for index in done.chosen]
    for point in points:
        _logger.info("%s: knob %g, test %s", in_words(point.targets), point.knob, point.test.model_dump_json())
    return {
        "num_layers": done.model.stock_layers,
        "training_precision": precision_used(spec.recipe.precision, training_device()),
        "full_flops": float(flops.full_flops(done.test_trace.lengths.numpy()).sum()),
        "full_validation_flops": float(flops.full_flops(done.validation_trace.lengths.numpy()).sum()),
        "curve_validation": done.validation.points,
        "curve_test": done.test.points,
        "operating_points": points,
        "hull": [hull_point(done, flops, index) for index in done.hull],
    }


def tables(done: Evaluation) -> dict[str, pd.DataFrame]:
    """Return the table of predictions, and the answers of the validation rows at the knobs of the hull."""
    chosen = [done.test.exits[index] for index in done.chosen]
    hull = {number: done.test.exits[index] for number, index in enumerate(done.hull) if index not in done.chosen}
    return {
        PREDICTIONS_FILE: prediction_table(done.test_trace, chosen, hull),
        VALIDATION_FILE: validation_table(done.validation_trace, [done.validation.exits[index] for index in done.hull]),
    }


# What is timed: a batch of tokenised rows, from collation to the answers.


@dataclass(frozen=True)
class BatchTime:
    """What the clock said of one batch: seconds; and the layers that each of its rows ran."""

    seconds: float
    layers: list[float]


def load_model(folder: Path, loaded: Sequence[MultiExitModel] = ()) -> MultiExitModel:
    """Load a trained model; it shares nothing with those loaded."""
    return MultiExitModel.from_pretrained(folder)


def stock_model(specs: Sequence[CellSpec], models: Sequence[MultiExitModel]) -> MultiExitModel:
    """Return what stands for the stock model: the full one where there is one; time does not tell weights.

    Else the first with a linear last classifier, since a method's own kind of classifier costs more than the stock one.
    """
    full = [model for spec, model in zip(specs, models, strict=True) if spec.method == _FULL]
    linear = [model for model in models if isinstance(model.classifier(model.num_layers), LinearClassifier)]
    return next(iter([*full, *linear, *models]))


def timed_rows(model: MultiExitModel, spec: CellSpec, rows: CellRows[TaskData], at_most: int) -> Sequence[Encoding]:
    """Return the first test rows, tokenised."""
    return model.tokenize(rows.task.test.texts[:at_most])


def timing_options(spec: CellSpec, rows: CellRows[TaskData], protocol: TimingSpec) -> dict[str, int]:
    """Return nothing: rows are all that is told."""
    return {}


def stock_contender(model: MultiExitModel) -> Callable[[Sequence[Encoding]], BatchTime]:
    """Return the stock model's own pass."""

    def run(batch: Sequence[Encoding]) -> BatchTime:
        seconds, _ = timed(lambda rows: stock_encoded(model, rows, batch_size=len(rows)), batch, model.device)
        return BatchTime(seconds, [float(model.stock_layers)] * len(batch))

    return run


def contender(method: Method, model: MultiExitModel, knob: float) -> Callable[[Sequence[Encoding]], BatchTime]:
    """Return a model with a method's rule."""
    rule = method.rule(model, knob)

    def run(batch: Sequence[Encoding]) -> BatchTime:
        seconds, answers = timed(
            lambda rows: classify_encoded(model, rows, rule, batch_size=len(rows)), batch, model.device
        )
        return BatchTime(seconds, answers.layers_run.tolist())

    return run


def regrouping_contenders(
    method: Method, model: MultiExitModel, knob: float, protocol: TimingSpec
) -> list[tuple[Any, Callable[[Sequence[Encoding]], BatchTime]]]:
    """Return nothing: rows that leave make room for no others."""
    return []


def average_layers(batches: Sequence[BatchTime]) -> float:
    """Return the mean over rows."""
    return float(np.mean([layers for batch in batches for layers in batch.layers]))


def samples(batch_size: int, rows: int, rounds: Sequence[Sequence[BatchTime]]) -> TimingSamples:
    """Return the seconds of every batch, and their sum in every round."""
    seconds = [[batch.seconds for batch in batches] for batches in rounds]
    return TimingSamples(
        batch_size=batch_size, rows=rows, seconds_per_round=list(map(sum, seconds)), seconds_per_batch=seconds
    )
