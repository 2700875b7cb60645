"""What rows of every kind have in common: which knobs stand for which targets, and where their seconds are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.analysis.panels.curves import Speedups, speedups
from benchmarks.analysis.panels.results import FULL, AnyPanel, BaseStoredCell
from benchmarks.analysis.rows.choices import choices_for, targets_of
from benchmarks.specs.targets import Target
from benchmarks.store.records import BaseContender

_RowT = TypeVar("_RowT", bound="BaseRow")


@dataclass(frozen=True, kw_only=True)
class BaseRow:
    """One operating point of one curve, averaged over seeds.

    Attributes:
        label, method: the curve, and the method behind it.
        knob_name, knobs: the knob's name, and its value for each seed.
        parameters: of the chosen cells, where they differ between the cells of the label (a grid).
        targets: why this knob, on validation data.
        seeds: the seeds that are averaged.
        timed_seeds: those of them that times are of.
        speedups: all ratios; by time of what was timed.
    """

    label: str
    method: str
    knob_name: str = ""
    knobs: tuple[float, ...] = ()
    parameters: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    seeds: tuple[int, ...] = ()
    timed_seeds: tuple[int, ...] = ()
    speedups: Speedups


def rows_of_curve(
    panel: AnyPanel, label: str, make: Callable[[AnyPanel, Sequence[Target], Sequence[Any]], _RowT]
) -> list[_RowT]:
    """Make the rows of one curve, fewest layers first; targets that choose the same knobs share a row.

    Args:
        panel, label: the curve.
        make: (panel, targets, what was chosen for them, one a seed) -> row.
    """
    return panel.once(f"rows of {label}", lambda: _rows_of_curve(panel, label, make))


def _rows_of_curve(
    panel: AnyPanel, label: str, make: Callable[[AnyPanel, Sequence[Target], Sequence[Any]], _RowT]
) -> list[_RowT]:
    chosen: dict[tuple[tuple[str, float], ...], tuple[list[Target], list[Any]]] = {}
    for target in targets_of(panel.cells_of(label)):
        choices = choices_for(panel, label, target)
        key = tuple((choice.cell.record.key, choice.point.knob) for choice in choices)
        if choices:
            chosen.setdefault(key, ([], choices))[0].append(target)
    rows = [make(panel, targets, choices) for targets, choices in chosen.values()]
    return sorted(rows, key=lambda row: row.speedups.average_layers)


def head_of(panel: AnyPanel, targets: Sequence[Target], choices: Sequence[Any]) -> dict[str, Any]:
    """Return what a row says of its curve and its knobs, as arguments of :class:`BaseRow`."""
    first = choices[0].cell.record
    return {
        "label": first.label,
        "method": first.method,
        "knob_name": first.knob_name,
        "knobs": tuple(choice.point.knob for choice in choices),
        "parameters": tuple(varied_parameters(choice.cell, panel.cells_of(first.label)) for choice in choices),
        "targets": tuple(targets),
        "seeds": tuple(choice.cell.record.seed for choice in choices),
        "timed_seeds": tuple(choice.cell.record.seed for choice in choices if _timed(panel, choice) is not None),
    }


def mean_and_std(values: ArrayLike) -> tuple[float, float | None]:
    """Return the mean, and the sample standard deviation where there is more than one value."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def varied_parameters(cell: BaseStoredCell[Any], siblings: Sequence[BaseStoredCell[Any]]) -> str:
    """Name the parameters of a cell that differ among the cells of its label: ``alpha=0.05``."""
    return ", ".join(
        f"{name}={format_value(value)}"
        for name, value in sorted(cell.record.parameters.items())
        if len({repr(s.record.parameters.get(name)) for s in siblings}) > 1
    )


def format_value(value: object) -> str:
    """Write a number as briefly as it can be read."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def record_of(panel: AnyPanel) -> Any:
    """Return the record that describes the panel as a whole: the full model's where there is one."""
    return (panel.full_cells() or panel.cells)[0].record


def contenders_of(panel: AnyPanel, choices: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the timings of what was chosen, and of the stock model beside it, of the seeds that were timed."""
    pairs = [pair for choice in choices if (pair := _timed(panel, choice)) is not None]
    return [here for here, _ in pairs], [stock for _, stock in pairs]


def _timed(panel: AnyPanel, choice: Any) -> tuple[Any, Any] | None:
    """Return the timing of one choice, and of the stock model beside it; the full model is timed as the stock model."""
    record = choice.cell.record
    here = panel.stock(record.seed) if record.method == FULL else panel.contender(record, choice.point.knob)
    stock = panel.stock(record.seed, beside=here)
    return None if here is None or stock is None else (here, stock)


def seconds_by_size(contenders: Iterable[BaseContender]) -> dict[int, list[float]]:
    """Return the seconds of every round of all contenders, by batch size, rows in step."""
    rounds: dict[int, list[float]] = {}
    for contender in contenders:
        for sample in contender.samples:
            if sample.round_seconds and not sample.regroups:
                rounds.setdefault(sample.batch_size, []).extend(sample.round_seconds)
    return rounds


def time_ratios(here: BaseContender, stock: BaseContender) -> dict[int, float]:
    """Return, by batch size, the time of the stock model / of a contender in the same rounds."""
    seconds, full_seconds = seconds_by_size([here]), seconds_by_size([stock])
    return speedups(1, 1, seconds=seconds, full_seconds=full_seconds).time_ratios
