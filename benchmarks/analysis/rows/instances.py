"""The rows of a table: for every method and target, the knob chosen on validation and what it does on test."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.curves import RoundSeconds, Speedups, speedups, time_ratio
from benchmarks.analysis.results import FULL, Panel
from benchmarks.analysis.rows.choices import Choice, choices_for, targets_of
from benchmarks.analysis.statistics import mean_and_std
from benchmarks.measure.intervals import interval_over_rows_and_seeds
from benchmarks.store.records import CellRecord, Contender, TimingSamples
from benchmarks.store.stored_results import BaseStoredCell, RowSource
from benchmarks.store.targets import HALF, Target
from consistentee.errors import UserError


@dataclass(frozen=True)
class Clock:
    """What the clock said at one batch size.

    Attributes:
        milliseconds: median over the rounds of milliseconds a row.
        p90: 90th percentile over all batches of milliseconds a row.
        spread: (slowest - fastest round) / median.
    """

    milliseconds: float
    p90: float
    spread: float


@dataclass(frozen=True)
class TableRow:
    """One operating point of one curve, averaged over seeds.

    Attributes:
        label, method: the curve, and the method behind it.
        knob_name, knobs: the knob's name, and its value for each seed.
        parameters: of the chosen cells, where they differ between the cells of the label (a grid).
        targets: why this knob, on validation data.
        seeds: the seeds that are averaged.
        scores: mean test score by metric.
        score_std: standard deviation of the task's score over seeds; None for one seed.
        interval: 95% bootstrap interval: over rows for one seed, over rows and seeds for several.
        speedups: all ratios.
        clocks: by batch size; empty if not timed.
        choices: what was chosen, one a seed.
    """

    label: str
    method: str
    knob_name: str
    knobs: tuple[float, ...]
    parameters: tuple[str, ...]
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    scores: dict[str, float]
    score_std: float | None
    interval: tuple[float, float]
    speedups: Speedups
    clocks: dict[int, Clock] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()


def table_rows(panel: Panel) -> list[TableRow]:
    """Return the rows of a panel: the stock full model first, then curve by curve, earliest exits first."""
    return [row for label in panel.labels for row in label_rows(panel, label)]


def label_rows(panel: Panel, label: str) -> list[TableRow]:
    """Return the rows of one curve; targets that choose the same knobs share a row."""
    return panel.once(f"rows of {label}", lambda: _label_rows(panel, label))


def _label_rows(panel: Panel, label: str) -> list[TableRow]:
    chosen: dict[tuple[tuple[str, float], ...], tuple[list[Target], list[Choice]]] = {}
    for target in targets_of(panel.cells_of(label)):
        choices = choices_for(panel, label, target)
        key = tuple((c.cell.record.key, c.point.knob) for c in choices)
        if choices:
            chosen.setdefault(key, ([], choices))[0].append(target)
    rows = [_row(panel, reasons, choices) for reasons, choices in chosen.values()]
    return sorted(rows, key=lambda row: row.speedups.average_layers)


def row_for_half(panel: Panel, label: str) -> TableRow | None:
    """Return the row of a curve that was chosen for half of the layers; the full model's only row; None if none was."""
    rows = label_rows(panel, label)
    if panel.methods[label] == FULL:
        return rows[0] if rows else None
    return next((row for row in rows if HALF in row.targets), None)


def _row(panel: Panel, reasons: Sequence[Target], choices: Sequence[Choice]) -> TableRow:
    first = choices[0].cell.record
    points = [choice.point for choice in choices]
    timed = _timings(panel, choices)
    by_metric = {name: mean_and_std([p.test.scores[name] for p in points]) for name in points[0].test.scores}
    return TableRow(
        label=first.label,
        method=first.method,
        knob_name=first.knob_name,
        knobs=tuple(point.knob for point in points),
        parameters=tuple(varied_parameters(choice.cell, panel.cells_of(first.label)) for choice in choices),
        targets=tuple(reasons),
        seeds=tuple(choice.cell.record.seed for choice in choices),
        scores={name: mean for name, (mean, _) in by_metric.items()},
        score_std=by_metric[first.metric][1],
        interval=_interval(first.metric, choices),
        speedups=speedups(
            float(np.mean([p.test.average_layers for p in points])),
            first.num_layers,
            flops=sum(p.flops for p in points),
            full_flops=sum(choice.cell.record.full_flops for choice in choices),
            seconds=_round_seconds([here for here, _ in timed]),
            full_seconds=_round_seconds([stock for _, stock in timed]),
        ),
        clocks=_clocks([here for here, _ in timed]),
        choices=tuple(choices),
    )


@dataclass(frozen=True)
class Answers:
    """What an operating point says of every test row: labels, predictions and exit layers, each [N]."""

    labels: NDArray
    predictions: NDArray
    exit_layers: NDArray[np.int64]


def answers_of(choice: Choice) -> Answers:
    """Read the answers of an operating point, by row. Raises UserError if they cannot be read."""
    columns = predictions_of(choice.cell.rows)
    try:
        return Answers(columns["label"], columns[f"prediction_{choice.number}"], columns[f"exit_layer_{choice.number}"])
    except KeyError as error:
        raise UserError(f"{choice.cell.rows.place} lacks column {error}") from error


def predictions_of(rows: RowSource) -> dict[str, NDArray]:
    """Read the predictions of a cell, column by column, rows in order; a file is read once as long as it is the same.

    Raises UserError if they cannot be read.
    """
    return _predictions(rows, rows.file.stat().st_mtime_ns if rows.file.is_file() else None)


@lru_cache(maxsize=4096)
def _predictions(rows: RowSource, changed: int | None) -> dict[str, NDArray]:
    table = rows.predictions().sort_values("row")
    return {str(name): table[name].to_numpy() for name in table.columns}


def _interval(metric: str, choices: Sequence[Choice]) -> tuple[float, float]:
    points = [choice.point for choice in choices]
    recorded = [point.score_interval for point in points]
    if len(choices) > 1:
        try:
            answers = [answers_of(choice) for choice in choices]
        except UserError:  # predictions are gone: what was recorded of each seed still stands
            answers = []
        if answers and all(np.array_equal(one.labels, answers[0].labels) for one in answers):
            return interval_over_rows_and_seeds(metric, answers[0].labels, [one.predictions for one in answers])
    return float(np.mean([low for low, _ in recorded])), float(np.mean([high for _, high in recorded]))


def _timings(panel: Panel, choices: Sequence[Choice]) -> list[tuple[Contender, Contender]]:
    """Return (this point, the stock model) of every seed; nothing unless all seeds are timed."""
    pairs = []
    for choice in choices:
        record = choice.cell.record
        here = panel.stock(record.seed) if record.method == FULL else panel.contender(record, choice.point.knob)
        stock = panel.stock(record.seed, beside=here)
        if here is None or stock is None:
            return []
        pairs.append((here, stock))
    return pairs


def _round_seconds(contenders: Sequence[Contender]) -> RoundSeconds:
    rounds: dict[int, list[float]] = {}
    for contender in contenders:
        for sample in contender.samples:
            rounds.setdefault(sample.batch_size, []).extend(sample.seconds_per_round)
    return rounds


def _clocks(contenders: Sequence[Contender]) -> dict[int, Clock]:
    samples = [sample for contender in contenders for sample in contender.samples]
    clocks = {}
    for size in sorted({sample.batch_size for sample in samples}):
        here = [sample for sample in samples if sample.batch_size == size]
        a_row = 1000 * np.concatenate([np.asarray(s.seconds_per_round) / s.rows for s in here])
        batches = np.concatenate([_milliseconds_a_row(s) for s in here])
        spreads = [np.ptp(s.seconds_per_round) / np.median(s.seconds_per_round) for s in here]
        clocks[size] = Clock(
            milliseconds=float(np.median(a_row)),
            p90=float(np.percentile(batches, 90)),
            spread=float(max(spreads)),
        )
    return clocks


def _milliseconds_a_row(samples: TimingSamples) -> NDArray[np.float64]:
    """Return, for every batch of every round, its time divided by its rows: the last batch may be smaller."""
    batches = len(samples.seconds_per_batch[0])
    rows = [min(samples.batch_size, samples.rows - i * samples.batch_size) for i in range(batches)]
    return np.ravel(1000 * np.asarray(samples.seconds_per_batch) / rows)


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


def never_exit_overheads(panel: Panel) -> dict[int, float]:
    """Return, by batch size, the time of the engine that never exits / the stock model, where timed."""
    timed = []
    for cell in panel.cells_of_method(FULL):
        for point in cell.record.operating_points:
            here = panel.contender(cell.record, point.knob)
            stock = panel.stock(cell.record.seed, beside=here)
            if here is not None and stock is not None:
                timed.append((here, stock))
    if not timed:
        return {}
    stock_seconds, seconds = _round_seconds([s for _, s in timed]), _round_seconds([h for h, _ in timed])
    return {size: time_ratio(seconds[size], stock_seconds[size]) for size in sorted(stock_seconds) if size in seconds}


def record_of(panel: Panel) -> CellRecord:
    """Return the record that describes the panel as a whole: the full model's where there is one."""
    return (panel.cells_of_method(FULL) or list(panel.cells))[0].record
