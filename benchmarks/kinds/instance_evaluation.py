"""Evaluate a trained classifier: replay every knob on two splits, choose knobs, and build the record and the rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.equal_cost import choose_all, concave_hull
from benchmarks.analysis.statistics import score_interval
from benchmarks.measure.flops import FlopModel
from benchmarks.specs.base import CellSpec
from benchmarks.specs.targets import WITHIN_ONE_POINT, Budget, Target, in_words
from benchmarks.store.folders import PREDICTIONS_FILE, VALIDATION_FILE
from benchmarks.store.records import CurvePoint, HullPoint, OperatingPoint
from consistentee.data.instances import TaskData
from consistentee.data.metrics import score
from consistentee.engine.classify import classify_encoded
from consistentee.methods.method import Method
from consistentee.models.base import chosen_device
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.walk import sweep
from consistentee.training.loop import precision_used

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

    spec: CellSpec
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
        """Knobs on the concave hull of the validation curve, which mixtures at equal cost are made of."""
        points = self.validation.points
        layers = [point.average_layers for point in points]
        return concave_hull(layers, [point.scores[self.task.metric] for point in points]).tolist()

    @property
    def default_knob(self) -> float:
        """The cheapest knob that loses at most one point on validation rows."""
        return next(self.knobs[index] for index, targets in self.chosen.items() if WITHIN_ONE_POINT in targets)

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """List the scores on both splits, and layers."""
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

    def measure(self) -> "Evaluation":
        """Return this: the test rows are replayed together with the validation rows."""
        return self

    def findings(self) -> dict[str, object]:
        """Collect the fields of the record that are specific to classification."""
        flops = FlopModel(self.model)
        points = [operating_point(self, flops, index) for index in self.chosen]
        for point in points:
            _logger.info("%s: knob %g, test %s", in_words(point.targets), point.knob, point.test.model_dump_json())
        return {
            "num_layers": self.model.stock_layers,
            "training_precision": precision_used(self.spec.recipe.precision, chosen_device()),
            "full_flops": float(flops.full_flops(self.test_trace.lengths.numpy()).sum()),
            "full_validation_flops": float(flops.full_flops(self.validation_trace.lengths.numpy()).sum()),
            "curve_validation": self.validation.points,
            "curve_test": self.test.points,
            "operating_points": points,
            "hull": [hull_point(self, flops, index) for index in self.hull],
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Build the table of predictions, and the answers of the validation rows at the knobs of the hull."""
        chosen = [self.test.exits[index] for index in self.chosen]
        hull = {number: self.test.exits[index] for number, index in enumerate(self.hull) if index not in self.chosen}
        hull_exits = [self.validation.exits[index] for index in self.hull]
        return {
            PREDICTIONS_FILE: prediction_table(self.test_trace, chosen, hull),
            VALIDATION_FILE: validation_table(self.validation_trace, hull_exits),
        }


def evaluate(
    spec: CellSpec, task: TaskData, method: Method, model: MultiExitModel, *, store: Path | None = None
) -> Evaluation:
    """Trace a trained model on both splits, replay every knob on both, and choose knobs on validation rows.

    Args:
        spec, task, method, model: the cell, its task, its method and the trained model.
        store: folder that keeps full-depth passes; methods with other rules on the same model share them.
    """
    knobs = [float(knob) for knob in method.knob_values(model)]
    rules = [method.rule(model, knob) for knob in knobs]
    test_trace = record_trace(model, task.test, store=store)
    validation_trace = record_trace(model, task.validation, store=store)
    validation = replay_curve(rules, knobs, validation_trace, task.metrics)
    return Evaluation(
        spec=spec,
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
    """Choose operating points on validation data alone: index of the point -> targets.

    Points are lost against the last knob of the same cell, the method's latest exits. ``num_layers`` is the stock
    model's L.
    """
    scores = [point.scores[metric] for point in validation]
    return choose_all(
        [*(Budget(layers_at_most=budget) for budget in budgets), WITHIN_ONE_POINT],
        [point.average_layers for point in validation],
        scores,
        num_layers=num_layers,
        reference=scores[-1],
    )


def hull_point(done: Evaluation, flops: FlopModel, index: int) -> HullPoint:
    """Build the record of a knob on the hull: its FLOPs."""
    return HullPoint(
        place=index,
        validation_flops=_flops(done, flops, index, done.validation_trace, done.validation),
        flops=_flops(done, flops, index, done.test_trace, done.test),
    )


def _flops(done: Evaluation, flops: FlopModel, index: int, trace: Trace, curve: Curve) -> float:
    """Count the FLOPs of all rows of a split at a knob; a rule that cannot run live costs nothing."""
    rule = None if done.method.replay_only else done.rules[index]
    exits = curve.exits[index].numpy()
    return float(flops.row_flops(trace.lengths.numpy(), exits, rule, trace.live_tokens).sum())


def operating_point(done: Evaluation, flops: FlopModel, index: int) -> OperatingPoint:
    """Build the record of a chosen knob; its rule is run live as well, unless it needs labels."""
    trace, exits = done.test_trace, done.test.exits[index]
    live = not done.method.replay_only
    interval = score_interval(
        done.task.metric,
        trace.labels.numpy(),
        trace.predictions(exits).numpy(),
        resamples=done.spec.bootstrap_resamples,
        seed=done.spec.seed,
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
    )


def _live_disagreements(done: Evaluation, index: int) -> int:
    """Classify the test rows live, and count rows whose exit layer or answer differs from the replay."""
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


def prediction_table(trace: Trace, chosen_exits: Sequence[Tensor], hull_exits: Mapping[int, Tensor]) -> pd.DataFrame:
    """Build the table of :meth:`benchmarks.store.stored_results.StoredCell.predictions`: a line a test row, no text."""
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
    """Build the table of :meth:`benchmarks.store.stored_results.StoredCell.validation`."""
    columns = {"row": np.arange(len(trace)), "label": trace.labels.numpy()}
    for number, exits in enumerate(hull_exits):
        columns[f"hull_prediction_{number}"] = trace.predictions(exits).numpy()
    return pd.DataFrame(columns)
