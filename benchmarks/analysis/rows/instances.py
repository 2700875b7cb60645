"""The rows of a table: for every method and target, the knob chosen on validation and what it does on test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.panels.curves import speedups, time_ratio
from benchmarks.analysis.panels.results import FULL, Panel
from benchmarks.analysis.rows.base import BaseRow, contenders_of, head_of, mean_and_std, rows_of_curve, seconds_by_size
from benchmarks.analysis.rows.choices import Choice
from benchmarks.analysis.statistics import interval_over_rows_and_seeds
from benchmarks.specs.targets import HALF, Target
from benchmarks.store.records import Contender, TimingSamples
from benchmarks.store.stored_results import RowSource
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


@dataclass(frozen=True, kw_only=True)
class TableRow(BaseRow):
    """An operating point of classification.

    Attributes:
        scores: mean test score by metric.
        score_std: standard deviation of the task's score over seeds; None for one seed.
        interval: 95% bootstrap interval: over rows for one seed, over rows and seeds for several.
        clocks: by batch size; empty if not timed.
        choices: what was chosen, one a seed.
    """

    scores: dict[str, float]
    score_std: float | None
    interval: tuple[float, float]
    clocks: dict[int, Clock] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()


def table_rows(panel: Panel) -> list[TableRow]:
    """Return the rows of a panel: the stock full model first, then curve by curve, earliest exits first."""
    return [row for label in panel.labels for row in label_rows(panel, label)]


def label_rows(panel: Panel, label: str) -> list[TableRow]:
    """Return the rows of one curve; targets that choose the same knobs share a row."""
    return rows_of_curve(panel, label, _row)


def row_for_half(panel: Panel, label: str) -> TableRow | None:
    """Return the row of a curve that was chosen for half of the layers; the full model's only row; None if none was."""
    rows = label_rows(panel, label)
    if panel.methods[label] == FULL:
        return rows[0] if rows else None
    return next((row for row in rows if HALF in row.targets), None)


def _row(panel: Panel, targets: Sequence[Target], choices: Sequence[Choice]) -> TableRow:
    first, points = choices[0].cell.record, [choice.point for choice in choices]
    timed, stock = contenders_of(panel, choices)
    by_metric = {name: mean_and_std([p.test.scores[name] for p in points]) for name in points[0].test.scores}
    return TableRow(
        **head_of(panel, targets, choices),
        scores={name: mean for name, (mean, _) in by_metric.items()},
        score_std=by_metric[first.metric][1],
        interval=_interval(first.metric, choices),
        speedups=speedups(
            float(np.mean([p.test.average_layers for p in points])),
            first.num_layers,
            flops=sum(p.flops for p in points),
            full_flops=sum(choice.cell.record.full_flops for choice in choices),
            seconds=seconds_by_size(timed),
            full_seconds=seconds_by_size(stock),
        ),
        clocks=_clocks(timed),
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


def hull_answers(columns: Mapping[str, NDArray], number: int) -> NDArray:
    """Return the answers of the test rows at a knob of the hull: each row's at the layer where it exits, [N].

    Raises UserError if they were not kept.
    """
    try:
        exits = columns[f"hull_exit_layer_{number}"]
        by_layer = np.stack([columns[f"layer_prediction_{t}"] for t in range(1, exits.max() + 1)])
    except KeyError as error:
        raise UserError(f"the predictions lack column {error}") from error
    return np.asarray(by_layer[exits - 1, np.arange(exits.size)])


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


def never_exit_overheads(panel: Panel) -> dict[int, float]:
    """Return, by batch size, the time of the engine that never exits / the stock model, where timed."""
    timed = []
    for cell in panel.cells_of_method(FULL):
        for point in cell.record.operating_points:
            here = panel.contender(cell.record, point.knob)
            stock = panel.stock(cell.record.seed, beside=here)
            if here is not None and stock is not None:
                timed.append((here, stock))
    stock_seconds, seconds = seconds_by_size(stock for _, stock in timed), seconds_by_size(here for here, _ in timed)
    return {size: time_ratio(seconds[size], stock_seconds[size]) for size in sorted(stock_seconds) if size in seconds}
