"""Cells of classification: replay the whole curve, choose knobs on validation data, check them live on test rows.

Their names are those of :class:`benchmarks.kinds.kind.KindFunctions`, as generation's are.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.select import choose_all, concave_hull
from benchmarks.kinds.rows import CellRows
from benchmarks.measure.clock import timed
from benchmarks.measure.flops import FlopModel
from benchmarks.measure.intervals import score_interval
from benchmarks.measure.signals import signal_quantiles
from benchmarks.specs.base import CellSpec, TimingSpec
from benchmarks.specs.targets import WITHIN_ONE_POINT, Budget, Target, in_words
from benchmarks.store.folders import PREDICTIONS_FILE, VALIDATION_FILE
from benchmarks.store.records import CurvePoint, HullPoint, OperatingPoint, TimingSamples
from consistentee.data.encoding import Encoding
from consistentee.data.instances import TaskData
from consistentee.data.metrics import score
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.methods.method import Method
from consistentee.models.classifiers import LinearClassifier
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.walk import sweep
from consistentee.training.loop import training_device
from consistentee.training.precision import precision_used

STOCK = "stock model"
_FULL = "full"
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
    validation_trace: Trace
    test_trace: Trace
    validation: Curve
    test: Curve
    chosen: dict[int, list[Target]]

    @cached_property
    def hull(self) -> list[int]:
        """The knobs that mixtures of equal cost are made of: of a grid's cells together too, they are among these."""
        points = self.validation.points
        layers = [point.average_layers for point in points]
        return concave_hull(layers, [point.scores[self.task.metric] for point in points]).tolist()

    @property
    def default_knob(self) -> float:
        """The knob that a user of the saved model gets unasked: cheap, at hardly any loss."""
        return next(self.knobs[index] for index, targets in self.chosen.items() if WITHIN_ONE_POINT in targets)

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """Return the scores on both splits, and layers."""
        metric, shown = self.task.metric, []
        for index, targets in self.chosen.items():
            validation, test = self.validation.points[index], self.test.points[index]
            numbers = {
                f"validation {metric} %": f"{100 * validation.scores[metric]:.1f}",
                f"test {metric} %": f"{100 * test.scores[metric]:.1f}",
                "test layers": f"{test.average_layers:.2f} of {self.model.stock_layers}",
            }
            shown.append((self.knobs[index], targets, numbers))
        return shown


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


def findings(spec: CellSpec, done: Evaluation) -> dict[str, Any]:
    """Return the fields of the record that only classification has, or counts in its own way."""
    flops = FlopModel(done.model)
    points = [_operating_point(spec, done, flops, index) for index in done.chosen]
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
        "hull": [_hull_point(done, flops, index) for index in done.hull],
    }


def _hull_point(done: Evaluation, flops: FlopModel, index: int) -> HullPoint:
    return HullPoint(
        place=index,
        validation_flops=_flops(done, flops, index, done.validation_trace, done.validation),
        flops=_flops(done, flops, index, done.test_trace, done.test),
    )


def _flops(done: Evaluation, flops: FlopModel, index: int, trace: Trace, curve: Curve) -> float:
    """Return the operations of all rows of a split at a knob; a rule that cannot run live costs nothing."""
    rule = None if done.method.replay_only else done.rules[index]
    exits = curve.exits[index].numpy()
    return float(flops.row_flops(trace.lengths.numpy(), exits, rule, trace.live_tokens).sum())


def _operating_point(spec: CellSpec, done: Evaluation, flops: FlopModel, index: int) -> OperatingPoint:
    trace, exits = done.test_trace, done.test.exits[index]
    live = not done.method.replay_only
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
        flops=_flops(done, flops, index, trace, done.test),
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


def tables(done: Evaluation) -> dict[str, pd.DataFrame]:
    """Return the table of predictions, and the answers of the validation rows at the knobs of the hull."""
    chosen = [done.test.exits[index] for index in done.chosen]
    hull = {number: done.test.exits[index] for number, index in enumerate(done.hull) if index not in done.chosen}
    return {
        PREDICTIONS_FILE: prediction_table(done.test_trace, chosen, hull),
        VALIDATION_FILE: validation_table(done.validation_trace, [done.validation.exits[index] for index in done.hull]),
    }


def prediction_table(trace: Trace, chosen_exits: Sequence[Tensor], hull_exits: Mapping[int, Tensor]) -> pd.DataFrame:
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
    for number, exits in hull_exits.items():
        columns[f"hull_exit_layer_{number}"] = exits.numpy()
    return pd.DataFrame(columns)


def validation_table(trace: Trace, hull_exits: Sequence[Tensor]) -> pd.DataFrame:
    """Return what :func:`benchmarks.store.folders.read_validation` describes."""
    columns = {"row": np.arange(len(trace)), "label": trace.labels.numpy()}
    for number, exits in enumerate(hull_exits):
        columns[f"hull_prediction_{number}"] = trace.predictions(exits).numpy()
    return pd.DataFrame(columns)


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
