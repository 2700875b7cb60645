"""Evaluate a trained classifier: replay every knob on two splits, choose knobs, and build the record and the rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.statistics import score_interval
from benchmarks.kinds.kind import TrainedCell
from benchmarks.measure.flops import FlopModel
from benchmarks.specs.base import CellSpec
from benchmarks.specs.knob_choice import choose_all, concave_hull, refine_knobs
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
    """All knob values of a method, replayed on the trace of one split; ``exits``: 1-based, int64 [knobs, N]."""

    trace: Trace
    exits: Tensor
    points: list[CurvePoint]

    def answers(self, index: int) -> NDArray:
        return self.trace.predictions(self.exits[index]).numpy()


class InstanceEvaluation:
    """A trained model, traced on both splits, with every knob of its method replayed and some chosen."""

    def __init__(self, cell: TrainedCell[CellSpec, TaskData, Method, MultiExitModel]) -> None:
        self.spec, self.task, self.method, self.model = cell.spec, cell.rows.task, cell.method, cell.model
        test, validation = (
            record_trace(self.model, split, store=cell.store) for split in (self.task.test, self.task.validation)
        )
        self.knobs = self._knobs(validation)
        self.rules = self._rules(self.knobs)
        self.test, self.validation = self._curve(test), self._curve(validation)
        layers = [point.average_layers for point in self.validation.points]
        scores = [point.scores[self.task.metric] for point in self.validation.points]
        targets: list[Target] = [*(Budget(layers_at_most=budget) for budget in self.spec.budgets), WITHIN_ONE_POINT]
        # Points are lost against the last knob of the same cell, the method's latest exits.
        self.chosen = choose_all(targets, layers, scores, num_layers=self.model.stock_layers, reference=scores[-1])
        # Mixtures at equal cost are made of these knobs.
        self.hull: list[int] = concave_hull(layers, scores).tolist()

    def _knobs(self, validation: Trace) -> list[float]:
        knobs = [float(knob) for knob in self.method.knob_values(self.model)]
        if not self.method.refines_knob:
            return knobs
        return refine_knobs(knobs, lambda some: sweep(self._rules(some), validation).double().mean(dim=1).numpy())

    def _rules(self, knobs: Sequence[float]) -> list[ExitRule]:
        return [self.method.rule(self.model, knob) for knob in knobs]

    def _curve(self, trace: Trace) -> Curve:
        curve = Curve(trace, sweep(self.rules, trace), [])
        labels = trace.labels.numpy()
        for index, (knob, exits) in enumerate(zip(self.knobs, curve.exits, strict=True)):
            answers = curve.answers(index)
            curve.points.append(
                CurvePoint(
                    knob=knob,
                    scores={metric: score(metric, labels, answers) for metric in self.task.metrics},
                    exit_histogram=np.bincount(exits.numpy(), minlength=trace.num_layers + 1)[1:].tolist(),
                    token_layers=None if trace.live_tokens is None else float(trace.layers_run(exits).mean()),
                )
            )
        return curve

    @property
    def default_knob(self) -> float:
        """The cheapest knob that loses at most one point on validation rows."""
        return next(self.knobs[index] for index, targets in self.chosen.items() if WITHIN_ONE_POINT in targets)

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        return [(self.knobs[index], targets, self._numbers(index)) for index, targets in self.chosen.items()]

    def _numbers(self, index: int) -> dict[str, str]:
        metric, validation, test = self.task.metric, self.validation.points[index], self.test.points[index]
        return {
            f"validation {metric} %": f"{100 * validation.scores[metric]:.1f}",
            f"test {metric} %": f"{100 * test.scores[metric]:.1f}",
            "test layers": f"{test.average_layers:.2f} of {self.model.stock_layers}",
        }

    def findings(self) -> dict[str, object]:
        flops, test, validation = FlopModel(self.model), self.test, self.validation
        points = [self._operating_point(flops, index) for index in self.chosen]
        for point in points:
            _logger.info("%s: knob %g, test %s", in_words(point.targets), point.knob, point.test.model_dump_json())
        return {
            "num_layers": self.model.stock_layers,
            "exit_network": self.model.description.classifier.kind,
            "training_precision": precision_used(self.spec.recipe.precision, chosen_device()),
            "full_flops": float(flops.full_flops(test.trace.lengths.numpy()).sum()),
            "full_validation_flops": float(flops.full_flops(validation.trace.lengths.numpy()).sum()),
            "curve_validation": validation.points,
            "curve_test": test.points,
            "operating_points": points,
            "hull": [self._hull_point(flops, index) for index in self.hull],
        }

    def _hull_point(self, flops: FlopModel, index: int) -> HullPoint:
        validation, test = (self._flops(flops, curve, index) for curve in (self.validation, self.test))
        return HullPoint(place=index, validation_flops=validation, flops=test)

    def _operating_point(self, flops: FlopModel, index: int) -> OperatingPoint:
        trace, live = self.test.trace, not self.method.replay_only
        resamples, seed, labels = self.spec.bootstrap_resamples, self.spec.seed, trace.labels.numpy()
        return OperatingPoint(
            knob=self.knobs[index],
            targets=self.chosen[index],
            validation=self.validation.points[index],
            test=self.test.points[index],
            score_interval=score_interval(
                self.task.metric, labels, self.test.answers(index), resamples=resamples, seed=seed
            ),
            flops=self._flops(flops, self.test, index),
            live_rows=len(trace) if live else 0,
            live_disagreements=self._live_disagreements(index) if live else 0,
        )

    def _flops(self, flops: FlopModel, curve: Curve, index: int) -> float:
        """Count the FLOPs of all rows of a split at a knob; a rule that cannot run live costs nothing."""
        rule, trace = None if self.method.replay_only else self.rules[index], curve.trace
        return float(flops.row_flops(trace.lengths.numpy(), curve.exits[index].numpy(), rule, trace.live_tokens).sum())

    def _live_disagreements(self, index: int) -> int:
        rows, replayed = self.test.trace.encodings, self.test.answers(index)
        live = classify_encoded(self.model, rows, self.rules[index], batch_size=_LIVE_BATCH_SIZE, sort_by_length=True)
        answers = live.predictions.numpy()
        if np.issubdtype(answers.dtype, np.integer):
            same = answers == replayed
        else:
            same = np.isclose(answers, replayed, rtol=_SAME_VALUE, atol=_SAME_VALUE)
        return int(((live.exit_layers != self.test.exits[index]).numpy() | ~same).sum())

    def tables(self) -> dict[str, pd.DataFrame]:
        """Build the tables of :class:`benchmarks.store.stored_results.StoredCell`: test rows and validation rows."""
        trace, exits = self.test.trace, self.test.exits
        columns = _rows(trace)
        for layer in range(1, trace.num_layers + 1):
            columns[f"layer_prediction_{layer}"] = trace.view(layer).predictions.numpy()
        for number, index in enumerate(self.chosen):
            columns[f"exit_layer_{number}"] = exits[index].numpy()
        validation = _rows(self.validation.trace)
        for number, index in enumerate(self.hull):
            validation[f"hull_prediction_{number}"] = self.validation.answers(index)
            if index not in self.chosen:
                columns[f"hull_exit_layer_{number}"] = exits[index].numpy()
        return {PREDICTIONS_FILE: pd.DataFrame(columns), VALIDATION_FILE: pd.DataFrame(validation)}


def _rows(trace: Trace) -> dict[str, NDArray]:
    return {"row": np.arange(len(trace)), "label": trace.labels.numpy()}
