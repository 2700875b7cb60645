"""What cells take on this machine, from a rehearsal of some seconds: a few rows, and a step of every stage."""

import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch

from benchmarks.kinds.kind import functions_of
from benchmarks.kinds.rows import CellRows
from benchmarks.specs.base import BaseCellSpec, TimingSpec
from benchmarks.specs.generation import DecodingTimingSpec, GenerationCellSpec
from consistentee.methods.method import get_method, train_method
from consistentee.progress import Position, listening
from consistentee.training.loop import run_stage, stages_given_to
from consistentee.training.recipe import Recipe
from consistentee.training.sources import TokenSource
from consistentee.training.stage import Source, Stage

SECONDS = 20.0
"""After so long no other method is rehearsed."""

_ROWS = 32
_PROMPTS = 8
_NEW_TOKENS = 4
_ROWS_OF_A_STEP = 2


class Takes(NamedTuple):
    """Seconds that a cell takes beside its training: its rows measured, and its points timed."""

    measuring: float
    timing: float


class Rehearsal:
    """Rehearses cells, and reckons what they take; what cells have in common is rehearsed once.

    A method trains on a few rows: its passes over them are timed, and each of its stages takes two steps, the second of
    which is timed, instead of as many as it declares.

    Args:
        rows: of a cell.
        protocol: by which points are timed.
        seconds: after so long no other method is rehearsed.
    """

    def __init__(
        self, rows: Callable[[BaseCellSpec], CellRows[Any]], protocol: TimingSpec, seconds: float = SECONDS
    ) -> None:
        self._rows = rows
        self._protocol = protocol
        self._until = time.monotonic() + seconds
        self._steps: dict[Hashable, float] = {}
        self._paid: set[Hashable] = set()
        self._besides: dict[Hashable, Takes] = {}
        self.shared = 0.0
        """Seconds of the stages among those rehearsed that other cells share: they are trained once."""

    def training(self, spec: BaseCellSpec) -> float | None:
        """Return the seconds that a cell trains; None if there is no time to rehearse it, or it cannot be."""
        if time.monotonic() > self._until:
            return None
        try:
            return self._training(spec)
        except Exception:  # a method may fail on few rows in any way; whether it fails on all of them, the run will say
            return None

    def besides(self, spec: BaseCellSpec) -> Takes | None:
        """Return what a cell takes beside training, once a cell of the same backbone and lengths was rehearsed."""
        return self._besides.get(_alike(spec, spec.task))

    def _training(self, spec: BaseCellSpec) -> float:
        rows = self._rows(spec)
        few = _few(rows)
        model = functions_of(spec.kind).build_model(spec, few)
        method = get_method(spec.method, **spec.parameters)
        judged = len(rows.training.validation) / len(few.training.validation)
        scale = rows.trained_on(spec.recipe) / len(few.training.train)
        steps_alike = _alike(spec, spec.training_group[0])
        ledger = _Ledger(self._steps, self._paid, (spec.training_group, steps_alike), scale, judged)
        started = time.perf_counter()
        with stages_given_to(ledger.enter), listening(ledger.hear):
            model = train_method(method, spec.method, model, few.training, spec.recipe.to_recipe(spec.seed)).eval()
        rest = time.perf_counter() - started - ledger.spent
        self.shared += ledger.shared
        if (alike := _alike(spec, spec.task)) not in self._besides:
            self._besides[alike] = self._beside(spec, rows, method, model)
        return ledger.seconds + rest

    def _beside(self, spec: BaseCellSpec, rows: CellRows[Any], method: Any, model: Any) -> Takes:
        """Measure and time a few rows: prompts are continued by a few tokens only."""
        functions, few, longer = functions_of(spec.kind), _few(rows), 1.0
        short, protocol = spec, self._protocol
        timed_tokens = 1.0
        if isinstance(spec, GenerationCellSpec) and isinstance(protocol, DecodingTimingSpec):
            tokens = spec.max_new_tokens or rows.task.max_new_tokens
            longer, timed_tokens = tokens / _NEW_TOKENS, (protocol.max_new_tokens or tokens) / _NEW_TOKENS
            short = spec.model_copy(update={"max_new_tokens": _NEW_TOKENS, "study": None})
            protocol = protocol.model_copy(update={"max_new_tokens": _NEW_TOKENS})
        started = time.perf_counter()
        functions.choose(short, few, method, model)
        share = (len(rows.task.validation) + len(rows.task.test)) / (len(few.task.validation) + len(few.task.test))
        measuring = (time.perf_counter() - started) * share * longer
        stock = functions.stock_contender(model, **functions.timing_options(short, few, protocol))
        timing = 0.0
        for size in protocol.passes:
            batch = functions.timed_rows(model, short, few, size)
            started = time.perf_counter()
            stock(batch)
            timing += (time.perf_counter() - started) / len(batch) * protocol.rows_at(size) * timed_tokens
        return Takes(measuring, timing * protocol.rounds * protocol.points_per_cell)


def _alike(spec: BaseCellSpec, task: str) -> Hashable:
    """Return what the time of a step or pass over a task depends on, whatever the method."""
    return spec.backbone, task if spec.kind == "generation" else None, spec.recipe


def _few(rows: CellRows[Any]) -> CellRows[Any]:
    """Return few rows of a cell."""
    task, training = rows.task, rows.training
    few = _PROMPTS if hasattr(task, "max_new_tokens") else _ROWS
    capped = task.capped(few, few, few)
    return CellRows(capped, capped if training is task else training.capped(few, few, few))


class _Ledger:
    """Keeps what the stages of one cell take.

    Args:
        steps: seconds of a step, by what it depends on.
        paid: stages that an earlier cell of the group has paid for.
        place: what shares the cell's stages, and what the time of a step depends on, whatever the method.
        scale: training rows / those of the rehearsal.
        judged: validation rows / those of the rehearsal.

    Attributes:
        seconds: of all stages of the cell, and of all passes over its training rows.
        shared: of those stages among them that other cells share.
        spent: by the rehearsal, in the same.
    """

    def __init__(
        self,
        steps: dict[Hashable, float],
        paid: set[Hashable],
        place: tuple[Hashable, Hashable],
        scale: float,
        judged: float,
    ) -> None:
        self._steps, self._paid, self._scale, self._judged = steps, paid, scale, judged
        self._group, self._alike = place
        self._entered: tuple[str, ...] = ()
        self._in_stage = False
        self.seconds = self.shared = self.spent = 0.0

    def enter(self, model: Any, source: Source[Any], stage: Stage[Any, Any], recipe: Recipe) -> None:
        """Take a stage for run: time a step of it, if that is not known, and count its steps."""
        started = time.perf_counter()
        self._in_stage = True
        kind = (self._alike, stage.name, stage.trains, stage.batch_size, type(source))
        if kind not in self._steps:
            self._steps[kind] = seconds_of_a_step(model, source, stage, recipe)
        # Heads take a number of steps, however many rows there are; what runs the backbone takes epochs.
        learns_backbone = isinstance(source, TokenSource) and any(name.startswith("backbone") for name in stage.trains)
        rows = len(source) * (self._scale if learns_backbone else 1.0)
        declared = (self._group, kind, stage.epochs, stage.learning_rate, stage.head_learning_rate)
        if not (stage.shared and declared in self._paid):
            takes = stage.epochs * ceil(rows / stage.batch_size) * self._steps[kind]
            if stage.judge is not None:
                takes += stage.epochs * _seconds(partial(stage.judge, model)) * self._judged
            self.seconds += takes
            self.shared += takes if stage.shared else 0.0
        if stage.shared:
            self._paid.add(declared)
        self._in_stage = False
        self._entered += (stage.name,)
        self.spent += time.perf_counter() - started

    def hear(self, position: Position) -> None:
        """Count a pass over the rows, at its end; methods whose models have come through the same stages share it."""
        if self._in_stage or not position.total or position.done < position.total:
            return
        self.spent += position.seconds
        made = self._group, self._entered, position.stage
        if made not in self._paid:
            self.seconds += position.seconds * self._scale
        self._paid.add(made)


def seconds_of_a_step(model: Any, source: Source[Any], stage: Stage[Any, Any], recipe: Recipe) -> float:
    """Take two steps, the first of which is slow; where rows do not fill a batch of tokens, a step takes longer.

    Of whole rows that a decoder reads, two do: a step of eight takes ten seconds.
    """
    batch = min(stage.batch_size, len(source))
    step, recipe = replace(stage, epochs=1, shared=False, judge=None), replace(recipe, store=None, progress=False)
    with stages_given_to(None):
        if isinstance(source, TokenSource):
            selected = source.select(torch.arange(batch))
            run_stage(model, selected, step, recipe)
            return _seconds(lambda: run_stage(model, selected, step, recipe)) * stage.batch_size / batch
        few = batch if source.lengths is None else min(batch, _ROWS_OF_A_STEP)
        first = _FirstRows(source, few)
        run_stage(model, first, step, recipe)
        return _seconds(lambda: run_stage(model, first, step, recipe)) * batch / few


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _FirstRows:
    """The first rows of a source."""

    def __init__(self, source: Source[Any], rows: int) -> None:
        self._source, self._rows = source, rows
        self.lengths = None if source.lengths is None else source.lengths[:rows]

    def __len__(self) -> int:
        return self._rows

    def batch(self, rows: torch.Tensor, step: int) -> Any:
        """Return some of them."""
        return self._source.batch(rows, step)

    def fingerprint(self) -> str:
        """Nothing is stored of a rehearsal."""
        raise NotImplementedError
