"""Case: a method trained on a tiny model, with what the checks need of it."""

import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

import consistentee
from benchmarks.contract.faults import FIT_SECTION, KNOB_SECTION, BrokenContractError, state_breaks
from benchmarks.contract.tiny_models import TinyModels, make_task, random_texts
from benchmarks.contract.watching import WatchedRule
from consistentee.data.instances import Split, TaskData, Text
from consistentee.engine.classify import Predictions, classify
from consistentee.errors import UserError
from consistentee.methods.method import Method
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.walk import replay, sweep
from consistentee.training.recipe import Recipe

_NOT_THE_AUTHORS = [Path(str(file)).parent for file in (torch.__file__, consistentee.__file__, __file__)]

ROWS = 40
_KNOBS = 5
RECIPE = Recipe(
    epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1, frozen_steps=8
)


@dataclass
class Case:
    """A method, trained on a toy task, and its trace of rows that it has not seen."""

    method: Method
    family: str
    models: TinyModels
    model: MultiExitModel
    texts: list[Text]
    trace: Trace
    _alone: dict[float, Predictions] = field(default_factory=dict, repr=False)

    @cached_property
    def knobs(self) -> list[float]:
        """Knob values whose average exits are spread over the range, both ends included."""
        values = list(self.method.knob_values(self.model))
        places = torch.arange(len(values), dtype=torch.float)
        with suppress(Exception):  # a rule that cannot be replayed: another check says so
            places = sweep([self.rule(value) for value in values], self.trace).float().mean(dim=1)
        return spread_over(values, places, _KNOBS)

    def rule(self, knob: float) -> ExitRule:
        """Return a fresh rule."""
        return self.method.rule(self.model, knob)

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
        try:
            return classify(self.model, texts, watched, batch_size=batch_size, sort_by_length=sort_by_length)
        except BrokenContractError:
            raise
        except Exception as error:  # a user's rule may fail in any way at all
            raise rule_failed(watched, knob, self.model.num_layers, error) from error

    def alone(self, knob: float) -> Predictions:
        """Classify every text without neighbours; computed once a knob."""
        if knob not in self._alone:
            self._alone[knob] = self.live(knob, batch_size=1)
        return self._alone[knob]

    def replayed(self, knob: float, trace: Trace | None = None) -> Tensor:
        """Return the exit layers [N] that a replay gives. Raises BrokenContractError if the rule fails there."""
        try:
            return replay(self.rule(knob), self.trace if trace is None else trace)
        except Exception as error:  # a user's rule may fail in any way at all
            raise BrokenContractError("the rule cannot be replayed on a trace", described(error)) from error


def train_case(method: Method, family: str, models: TinyModels) -> Case:
    """Train a method as a run would, on a toy task of 3 classes. Raises BrokenContractError if that fails."""
    model = fitted(method, models.model(family), make_task())
    if not method.knob_values(model):
        raise BrokenContractError("knob_values() is empty: there is nothing to sweep", section=KNOB_SECTION)
    texts = random_texts(ROWS, seed=9)
    labels = [i % 3 for i in range(ROWS)]
    return Case(method, family, models, model, texts, record_trace(model, Split("unseen", texts, labels)))


def fitted(method: Method, model: MultiExitModel, task: TaskData) -> MultiExitModel:
    """Fit a method on a tiny model. Raises BrokenContractError if that fails."""
    set_seed(RECIPE.seed)  # as a run does, so that a method may draw from the global generators
    try:
        method.check_task(task)
        trained = method.fit(model, task, RECIPE)
    except Exception as error:  # a user's method may fail in any way at all
        raise BrokenContractError("fit() fails", described(error), section=FIT_SECTION) from error
    if not isinstance(trained, MultiExitModel):
        found = f"it returned {type(trained).__name__}"
        raise BrokenContractError("fit() must return the trained model", found, section=FIT_SECTION)
    return trained


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


def spread_over(values: Sequence[float], places: Tensor, count: int) -> list[float]:
    """Return some of the values, both ends included, whose places [values] are spread evenly."""
    wanted = torch.linspace(float(places.min()), float(places.max()), count)
    nearest = (places.unsqueeze(0) - wanted.unsqueeze(1)).abs().argmin(dim=1).tolist()
    return [values[i] for i in sorted({0, *nearest, len(values) - 1})]


def described(error: BaseException) -> str:
    """Say what was raised, and where in the author's own code: the last line outside of the library and torch."""
    sentence = " ".join(str(error).split())
    what = sentence if isinstance(error, UserError) else f"{type(error).__name__}: {sentence}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in _NOT_THE_AUTHORS)]
    return f"{what} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else what


def rule_failed(watched: WatchedRule, knob: float, layers: int, error: Exception) -> BrokenContractError:
    """Say how and where a watched rule failed: because rows had left, or in any case."""
    left = watched.rows_at_start - watched.rows_now
    if watched.layer and left:
        gone = f"{left} of {watched.rows_at_start} rows have left"
        return state_breaks(f"it fails at layer {watched.layer} once {gone} (knob {knob:g}): {described(error)}")
    where = f"at layer {watched.layer} of {layers}, counted from 1, " if watched.layer else ""
    return BrokenContractError("the rule fails on new texts", f"{where}knob {knob:g}: {described(error)}")
