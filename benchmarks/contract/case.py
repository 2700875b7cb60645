"""Case: a method of classification trained on a tiny encoder, with what the checks need of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.contract.base_case import BaseCase, failures_of, fitted
from benchmarks.contract.tiny.encoders import TinyModels, make_task, random_texts
from benchmarks.contract.watching import WatchedRule
from consistentee.data.instances import Split, Text
from consistentee.engine.classify import Predictions, classify
from consistentee.methods.method import Method
from consistentee.models.encoder.cascade import companion_layers
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.training.recipe import Recipe

ROWS = 40
RECIPE = Recipe(
    epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1, frozen_steps=8
)


@dataclass
class Case(BaseCase[MultiExitModel, Trace]):
    """A method, trained on a toy task; texts that it has not seen, and their trace."""

    row: ClassVar[str] = "row"
    tried_knobs: ClassVar[int] = 5

    texts: list[Text]

    def live(
        self,
        knob: float,
        texts: Sequence[Text] | None = None,
        *,
        watched: WatchedRule | None = None,
        batch_size: int = 32,
        sort_by_length: bool = True,
    ) -> Predictions:
        """Classify texts (by default all of the case) live, with a fresh rule unless one is given.

        Raises BrokenContractError, which says how, if the rule fails.
        """
        watched = watched or WatchedRule(self.rule(knob))
        texts = self.texts if texts is None else texts
        with failures_of(watched, knob, self.model.num_layers):
            return classify(self.model, texts, watched, batch_size=batch_size, sort_by_length=sort_by_length)

    def alone(self, knob: float) -> Predictions:
        """Classify every text without neighbours; computed once a knob."""
        if knob not in self._done:
            self._done[knob] = self.live(knob, batch_size=1)
        found: Predictions = self._done[knob]
        return found

    def trained_again(self) -> "Case":
        """Train the method once more, in the same way."""
        return train_case(self.method, self.family, self.models)

    def numbers(self) -> Tensor:
        return self.trace.logits

    def answers(self, knob: float) -> list[Tensor]:
        live = self.live(knob)
        return [live.exit_layers, live.logits]

    def ask(self, watched: WatchedRule, knob: float) -> None:
        """Classify the texts with a rule that is watched."""
        self.live(knob, watched=watched)

    def modules_by_layer(self) -> Iterator[tuple[str, int, nn.Module]]:
        """Yield classifiers, poolers and heads of one layer each, with owner and layer."""
        model = self.model
        families = {"classifier": model.classifiers, "pooler": model.poolers}
        families |= {f"head {name!r}": model.head(name).modules_by_layer for name in model.exit_heads}
        for owner, modules in families.items():
            if len(modules) == model.num_layers:  # else it is shared, and of no layer
                for layer, module in enumerate(modules, start=1):
                    yield owner, layer, module

    def first_exit(self, knob: float) -> int:
        """Return layer 1; a cascade's first exit is its companion's last layer."""
        return max(1, companion_layers(self.model))

    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], Trace]:
        """Return the exits of every text alone and of all in one batch."""
        together = self.live(knob, batch_size=ROWS)
        return self.alone(knob).exit_layers.tolist(), together.exit_layers.tolist(), self.trace

    def replayed_alone(self, knob: float, trace: Trace) -> Tensor:
        return torch.cat([self.replayed(knob, rows_of(trace, [row])) for row in range(len(trace))])


def train_case(method: Method, family: str, models: TinyModels, rows: int = ROWS) -> Case:
    """Train a method as a run would, on a toy task of 3 classes. Raises BrokenContractError if that fails."""
    model = fitted(method, models.model(family), make_task(), RECIPE)
    texts = random_texts(rows, seed=9)
    trace = record_trace(model, Split("unseen", texts, [i % 3 for i in range(rows)]))
    return Case(method, family, models, model, trace, texts)


def rows_of(trace: Trace, rows: Sequence[int]) -> Trace:
    """Return the trace of some rows alone: whatever has the rows first is cut."""
    index, count = torch.tensor(rows), len(trace)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            return value[index]
        if isinstance(value, list) and len(value) == count:
            return [value[row] for row in rows]
        if isinstance(value, dict):
            return {name: cut(item) for name, item in value.items()}
        return value

    names = [item.name for item in fields(trace) if not item.name.startswith("_")]
    return replace(trace, **{name: cut(getattr(trace, name)) for name in names}, _views={})
