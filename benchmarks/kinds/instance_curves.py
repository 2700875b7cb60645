"""A trained classifier, evaluated: every knob of its method replayed on two splits, and the knobs that are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from benchmarks.analysis.equal_cost import choose_all, concave_hull
from benchmarks.specs.targets import WITHIN_ONE_POINT, Budget, Target
from benchmarks.store.records import CurvePoint
from consistentee.data.instances import TaskData
from consistentee.data.metrics import score
from consistentee.methods.method import Method
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import sweep


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
