"""Report the progress of long loops to a listener. Never loads torch."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

_ItemT = TypeVar("_ItemT")


class StopAfterStepError(KeyboardInterrupt):
    """Raised by a listener to end the work between two steps; a training keeps the step that it has reached."""


@dataclass(frozen=True)
class Position:
    """How far a stage has come.

    Attributes:
        done, total: steps; 0 of 0 where they are not counted.
        steps, rows: done in ``seconds``, which a stage that goes on from a checkpoint did not spend on all of ``done``.
    """

    stage: str
    done: int = 0
    total: int = 0
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0


Listener = Callable[[Position], None]
"""Called at every step, so it should be quick."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Report the work in the block to ``listener``; None disables progress, for example while timing."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def begin_stage(stage: str) -> None:
    """Report that a stage begins whose steps are not counted, or not yet."""
    if (listener := _listener.get()) is not None:
        listener(Position(stage))


class Steps:
    """Count and report the steps of a stage. Costs next to nothing without a listener."""

    def __init__(self, stage: str, total: int, *, first: int = 0) -> None:
        """``first``: steps that an earlier process has done."""
        self._listener = _listener.get()
        self._stage, self._total, self._first = stage, total, first
        self._steps = self._rows = 0
        self._began = time.monotonic()
        if self._listener is not None:
            self._listener(Position(stage, first, total))

    def add(self, steps: int, rows: int) -> None:
        """Report that more steps are done, and how many rows they took."""
        if self._listener is None:
            return
        self._steps += steps
        self._rows += rows
        seconds = time.monotonic() - self._began
        done = self._first + self._steps
        self._listener(Position(self._stage, done, self._total, self._steps, self._rows, seconds))

    def leave_out(self, steps: int) -> None:
        """Remove steps that turn out to be unnecessary."""
        self._total -= steps


def tracked(items: Sequence[_ItemT], stage: str, *, rows: int, first: int = 0, shown: bool = False) -> Iterator[_ItemT]:
    """Yield items, one a step of ``rows`` rows, and report each step.

    ``first``: steps that an earlier process has done. ``shown`` draws a bar on the terminal too.
    """
    steps = Steps(stage, first + len(items), first=first)
    iterated: Iterable[_ItemT] = items
    if shown:
        from rich.progress import track

        iterated = track(items, description=stage, transient=True)
    for item in iterated:
        yield item
        steps.add(1, rows)
