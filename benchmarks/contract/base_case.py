"""BaseCase: a method of either kind, trained on a tiny model, with what the checks need of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.contract.faults import (
    FIT_SECTION,
    KNOB_SECTION,
    BrokenContractError,
    any_error_is,
    described,
    state_breaks,
)
from benchmarks.contract.watching import WatchedRule
from consistentee.methods.method import AnyMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace
from consistentee.traces.token_trace import TokenTrace
from consistentee.traces.walk import replay, sweep

ModelT = TypeVar("ModelT", bound=MultiExitModel | MultiExitDecoder)
TraceT = TypeVar("TraceT", bound=Trace | TokenTrace)

_NO_REPLAY = "the rule cannot be replayed on a trace"


@dataclass
class BaseCase(ABC, Generic[ModelT, TraceT]):
    """A method, trained on a toy task, and its trace of rows that it has not seen.

    Class attributes:
        row: what one row is called.
        tried_knobs: number of the knob values that are tried live.
    """

    row: ClassVar[str]
    tried_knobs: ClassVar[int]

    method: AnyMethod
    family: str
    models: Any
    model: ModelT
    trace: TraceT
    _done: dict[Any, Any] = field(default_factory=dict, repr=False, kw_only=True)

    @cached_property
    def knobs(self) -> list[float]:
        """Knob values whose average exits are spread over the range, both ends included."""
        values = list(self.method.knob_values(self.model))
        places = torch.arange(len(values), dtype=torch.float)
        with suppress(Exception):  # a rule that cannot be replayed: another check says so
            places = sweep([self.rule(value) for value in values], self.trace).float().mean(dim=1)
        return _spread_over(values, places, self.tried_knobs)

    def rule(self, knob: float) -> ExitRule:
        """Return a fresh rule."""
        return self.method.rule(self.model, knob)

    def with_model(self, model: ModelT) -> Self:
        """Return the same case with another model."""
        return replace(self, model=model, _done={})

    def replayed(self, knob: float, trace: TraceT | None = None, rule: ExitRule | None = None) -> Tensor:
        """Return the exit layers [N] that a replay gives. Raises BrokenContractError if the rule fails there."""
        with any_error_is(_NO_REPLAY):
            return replay(rule or self.rule(knob), self.trace if trace is None else trace)

    def swept(self, values: Sequence[float]) -> Tensor:
        """Return the exit layers of the rows that may leave [values, N], each value replayed."""
        with any_error_is(_NO_REPLAY):
            return sweep([self.rule(value) for value in values], self.trace)

    @abstractmethod
    def trained_again(self) -> Self:
        """Train the method once more, in the same way."""

    @abstractmethod
    def numbers(self) -> Tensor:
        """Return what the model says of the rows at full depth."""

    @abstractmethod
    def answers(self, knob: float) -> list[Tensor]:
        """Return exits and answers of a live run."""

    @abstractmethod
    def ask(self, watched: WatchedRule, knob: float) -> None:
        """Run the rows live, with a rule that is watched."""

    @abstractmethod
    def modules_by_layer(self) -> Iterator[tuple[str, int, nn.Module]]:
        """Yield whatever belongs to one layer: owner, layer, module."""

    @abstractmethod
    def first_exit(self, knob: float) -> int:
        """Return the layer at which a rule without memory can let every row leave."""

    @abstractmethod
    def alone_and_together(self, knob: float) -> tuple[list[int], list[int], TraceT]:
        """Return live exits of rows without neighbours and with, and the trace that must give them."""

    @abstractmethod
    def replayed_alone(self, knob: float, trace: TraceT) -> Tensor:
        """Return the exit layers [N] of rows that are replayed one by one."""


def fitted(method: AnyMethod, model: ModelT, task: Any, recipe: Any) -> ModelT:
    """Fit a method on a tiny model. Raises BrokenContractError if that fails, or leaves nothing to sweep."""
    set_seed(recipe.seed)  # as a run does, so that a method may draw from the global generators
    with any_error_is("fit() fails", FIT_SECTION):
        method.check_task(task)
        trained = method.fit(model, task, recipe)
    if not isinstance(trained, type(model)):
        found = f"it returned {type(trained).__name__}"
        raise BrokenContractError("fit() must return the trained model", found, section=FIT_SECTION)
    if not method.knob_values(trained):
        raise BrokenContractError("knob_values() is empty: there is nothing to sweep", section=KNOB_SECTION)
    return trained


@contextmanager
def failures_of(watched: WatchedRule, knob: float, layers: int) -> Iterator[None]:
    """Raise BrokenContractError, which says how and where, if a watched rule fails in the block."""
    try:
        yield
    except BrokenContractError:
        raise
    except Exception as error:  # a user's rule may fail in any way at all
        left = watched.rows_at_start - watched.rows_now
        if watched.layer and left:
            gone = f"{left} of {watched.rows_at_start} rows have left"
            example = f"it fails at layer {watched.layer} once {gone} (knob {knob:g}): {described(error)}"
            raise state_breaks(example) from error
        where = f"at layer {watched.layer} of {layers}, counted from 1, " if watched.layer else ""
        example = f"{where}knob {knob:g}: {described(error)}"
        raise BrokenContractError("the rule fails on new texts", example) from error


def _spread_over(values: Sequence[float], places: Tensor, count: int) -> list[float]:
    """Return some of the values, both ends included, whose places [values] are spread evenly."""
    wanted = torch.linspace(float(places.min()), float(places.max()), count)
    nearest = (places.unsqueeze(0) - wanted.unsqueeze(1)).abs().argmin(dim=1).tolist()
    return [values[i] for i in sorted({0, *nearest, len(values) - 1})]
