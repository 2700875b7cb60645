"""Evaluate a trained classifier: replay every knob on two splits, and run the knobs that are mixed live."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure.flops import FlopModel
from benchmarks.measure.knobs import MOST_LOST, around_budgets, cheapest_within, refine_knobs
from benchmarks.measure.terms import has_terms, is_mean, terms_of
from benchmarks.specs.base import CellSpec
from benchmarks.store.records import CellRecord
from consistentee.data.metrics import score
from consistentee.data.tasks import TaskData
from consistentee.engine.classify import classify_encoded
from consistentee.methods.method import Method
from consistentee.models.base import chosen_device
from consistentee.models.encoder import MultiExitModel
from consistentee.progress import tracked
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.walk import sweep
from consistentee.training.loop import precision_used

_LIVE_BATCH_SIZE = 32
_SAME_VALUE = 1e-4  # two numeric answers that differ by less are the same answer, summed in another order

_logger = logging.getLogger(__name__)


class InstanceEvaluation:
    """A trained model, traced on both splits, with every knob of its method replayed, and last "never exit"."""

    def __init__(
        self, spec: CellSpec, task: TaskData, method: Method, model: MultiExitModel, store: Path | None
    ) -> None:
        self.spec, self.task, self.method, self.model = spec, task, method, model
        self.test, self.validation = (record_trace(model, split, store=store) for split in (task.test, task.validation))
        self.knobs = [float(knob) for knob in method.knob_values(model)]
        if method.refines_knob:
            traced = self.validation
            self.knobs = refine_knobs(self.knobs, lambda some: _layers(traced, sweep(self._rules(some), traced)))
        self.rules = [*self._rules(self.knobs), NeverExit()]
        self.exits, self.validation_exits = (sweep(self.rules, trace) for trace in (self.test, self.validation))
        self.layers = _layers(self.test, self.exits)
        self.validation_layers = _layers(self.validation, self.validation_exits)
        metric, labels = task.metric, self.validation.labels.numpy()
        self.validation_scores = [
            score(metric, labels, self.validation.predictions(exits).numpy()) for exits in self.validation_exits
        ]

    def _rules(self, knobs: Sequence[float]) -> list[ExitRule]:
        return [self.method.rule(self.model, knob) for knob in knobs]

    @property
    def default_knob(self) -> float:
        """The cheapest knob that loses at most a point on validation rows, against the method's latest exits."""
        return self.knobs[cheapest_within(MOST_LOST, self.validation_layers[:-1], self.validation_scores[:-1])]

    @cached_property
    def mixed(self) -> list[int]:
        """The places of the knobs that are mixed at the budgets of layers, or about at those of operations."""
        by_layers = around_budgets(self.layers, self.model.stock_layers, "classification")
        dearer = self._flops(by_layers[0]) / self.full_flops * self.model.stock_layers / self.layers[by_layers[0]]
        by_flops = around_budgets(self.layers * dearer, self.model.stock_layers, "classification")
        return sorted({*by_layers, *by_flops})

    @cached_property
    def flop_model(self) -> FlopModel:
        return FlopModel(self.model)

    @cached_property
    def full_flops(self) -> float:
        """Operations of the stock model on all test rows, padding not counted."""
        return float(self.flop_model.full_flops(self.test.lengths.numpy()).sum())

    def _flops(self, place: int) -> float:
        """Count the operations of all test rows at a knob; a rule that cannot run live costs nothing."""
        rule, trace = None if self.method.replay_only else self.rules[place], self.test
        rows = self.flop_model.row_flops(trace.lengths.numpy(), self.exits[place].numpy(), rule, trace.live_tokens)
        return float(rows.sum())

    def record(self, **shared: Any) -> CellRecord:
        return CellRecord(
            **shared,
            num_layers=self.model.stock_layers,
            exit_network=self.model.description.classifier.kind,
            training_precision=precision_used(self.spec.recipe.precision, chosen_device()),
        )

    @cached_property
    def curve(self) -> pd.DataFrame:
        """The frame of the curve, see :mod:`benchmarks.store.frames`; operations are counted at mixed knobs alone."""
        labels, live = self.test.labels.numpy(), not self.method.replay_only
        answers = [self.test.predictions(exits).numpy() for exits in self.exits]
        columns: dict[str, object] = {
            "place": np.arange(len(self.rules)),
            "knob": [*self.knobs, np.nan],
            "validation_layers": self.validation_layers,
            "validation_score": self.validation_scores,
            "layers": self.layers,
        }
        for metric in self.task.metrics:
            columns[metric] = [score(metric, labels, one) for one in answers]
            if has_terms(metric, labels) and not is_mean(metric):
                columns[f"{metric}_terms"] = [
                    terms_of(metric, labels, one).mean(axis=0, dtype=float).tolist() for one in answers
                ]
        deepest = self.test.num_layers
        columns["exit_histogram"] = [np.bincount(exits, minlength=deepest + 1)[1:].tolist() for exits in self.exits]
        found = pd.DataFrame(columns)
        found["flops"] = pd.Series({place: self._flops(place) for place in self.mixed})
        found["full_flops"] = self.full_flops
        places = self.mixed if live else []
        found["live_rows"] = pd.Series(dict.fromkeys(places, float(len(self.test))), dtype=float)
        tested = tracked(places, "measuring", rows=len(self.test))
        differ = {place: float(self._live_disagreements(place, answers[place])) for place in tested}
        found["live_disagreements"] = pd.Series(differ, dtype=float)
        for place in self.mixed:
            point = found.loc[place]
            _logger.info("knob %g: %s", point["knob"], point[[*self.task.metrics, "layers"]].to_dict())
        return found

    def _live_disagreements(self, place: int, replayed: NDArray) -> int:
        rows, rule = self.test.encodings, self.rules[place]
        live = classify_encoded(self.model, rows, rule, batch_size=_LIVE_BATCH_SIZE, sort_by_length=True)
        answers = live.predictions.numpy()
        if np.issubdtype(answers.dtype, np.integer):
            same = answers == replayed
        else:
            same = np.isclose(answers, replayed, rtol=_SAME_VALUE, atol=_SAME_VALUE)
        return int(((live.exit_layers != self.exits[place]).numpy() | ~same).sum())

    def frames(self) -> Mapping[str, pd.DataFrame]:
        trace, number = self.test, np.arange(len(self.test))
        by_layer = {layer: trace.view(layer).predictions.numpy() for layer in range(1, trace.num_layers + 1)}
        answers = [pd.DataFrame({"row": number, "layer": layer, "answer": own}) for layer, own in by_layer.items()]
        exits = [
            pd.DataFrame({"row": number, "place": place, "exit_layer": self.exits[place].numpy()})
            for place in self.mixed
        ]
        return {
            "rows": pd.DataFrame({"row": number, "label": trace.labels.numpy()}),
            "curve": self.curve,
            "answers": pd.concat(answers, ignore_index=True),
            "exits": pd.concat(exits, ignore_index=True),
        }


def _layers(trace: Trace, exits: Tensor) -> NDArray[np.float64]:
    """Average the layers that rows run at every knob; where tokens exit by themselves, over a row's tokens first."""
    return np.array([float(trace.layers_run(own).double().mean()) for own in exits])
