"""The rows of a table of generation: for every method and target, the knob chosen on validation, and its test texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.panels.curves import speedups
from benchmarks.analysis.panels.results import BasePanel, load_panels_of
from benchmarks.analysis.rows.base import (
    BaseRow,
    contenders_of,
    head_of,
    mean_and_std,
    record_of,
    rows_of_curve,
    seconds_by_size,
)
from benchmarks.analysis.rows.choices import DecodingChoice
from benchmarks.analysis.rows.instances import predictions_of
from benchmarks.specs.targets import HALF, Budget, Target
from benchmarks.store.folders import Fault
from benchmarks.store.generation_records import (
    DecodingContender,
    DecodingTimingRecord,
    GenerationRecord,
    Mean,
)
from benchmarks.store.stored_results import BaseStoredCell
from consistentee.errors import UserError

GenerationCell: TypeAlias = BaseStoredCell[GenerationRecord]
GenerationPanel: TypeAlias = BasePanel[GenerationRecord, DecodingTimingRecord, DecodingContender]

STOCK = "stock generate"


@dataclass(frozen=True)
class DecodingClock:
    """What the clock said at one batch size.

    Attributes:
        tokens_per_second: of decoding: new tokens but the first of each text; the median over the rounds.
        prefill_milliseconds: a prompt, its first new token included; the median over the rounds.
        spread: (slowest - fastest round) / median, of decoding.
    """

    tokens_per_second: float
    prefill_milliseconds: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class GenerationRow(BaseRow):
    """An operating point of generation; the stock model's own ``generate`` is one, too: :data:`STOCK`.

    Attributes:
        scores: ROUGE against the references, by metric.
        score_std: standard deviation of the task's score over seeds; None for one seed.
        full_text_score: ROUGE-L against the full model's text.
        token_match: share of the places with the full model's token.
        acceptance: share of the drafted tokens that were accepted; None where nothing is drafted.
        clocks: by batch size; empty if not timed.
        choices: what was chosen, one a seed.
    """

    scores: dict[str, Mean]
    score_std: float | None
    full_text_score: Mean
    token_match: Mean
    acceptance: float | None = None
    clocks: dict[int, DecodingClock] = field(default_factory=dict)
    choices: tuple[DecodingChoice, ...] = ()


def load_generation_panels(
    out_dir: Path, labels: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> tuple[list[GenerationPanel], list[Fault]]:
    """Read a results folder of generation; see :func:`benchmarks.analysis.panels.results.load_panels`."""
    return load_panels_of(GenerationRecord, DecodingTimingRecord, out_dir, labels, tasks)


def generation_rows(panel: GenerationPanel) -> list[GenerationRow]:
    """Return the rows of a panel: the stock model first, then curve by curve, fewest layers first."""
    return [stock_row(panel), *(row for label in panel.labels for row in curve_rows(panel, label))]


def curve_rows(panel: GenerationPanel, label: str) -> list[GenerationRow]:
    """Return the rows of one curve; targets that choose the same knobs share a row."""
    return rows_of_curve(panel, label, _row)


def _row(panel: GenerationPanel, targets: Sequence[Target], choices: Sequence[DecodingChoice]) -> GenerationRow:
    first, points = choices[0].cell.record, [choice.point for choice in choices]
    drafts = [point.speculation for point in points if point.speculation is not None]
    timed, stock = contenders_of(panel, choices)
    return GenerationRow(
        **head_of(panel, targets, choices),
        scores={name: mean_of([point.scores[name] for point in points]) for name in points[0].scores},
        score_std=mean_and_std([point.scores[first.metric].value for point in points])[1],
        full_text_score=mean_of([point.full_text_score for point in points]),
        token_match=mean_of([point.token_match for point in points]),
        speedups=speedups(
            float(np.mean([point.average_layers for point in points])),
            first.num_layers,
            flops=sum(point.decode_flops for point in points),
            full_flops=sum(point.full_decode_flops for point in points),
            seconds=seconds_by_size(timed),
            full_seconds=seconds_by_size(stock),
        ),
        acceptance=sum(d.accepted for d in drafts) / max(sum(d.drafted for d in drafts), 1) if drafts else None,
        clocks=_clocks(timed),
        choices=tuple(choices),
    )


def row_near_half(panel: GenerationPanel, label: str) -> GenerationRow | None:
    """Return the row of a curve that was chosen for the budget nearest to half of the layers; None if there is none."""
    shares = [
        (abs(target.layers_at_most - HALF.layers_at_most), place, row)
        for place, row in enumerate(curve_rows(panel, label))
        for target in row.targets
        if isinstance(target, Budget)
    ]
    return min(shares, key=lambda found: found[:2])[2] if shares else None


def stock_row(panel: GenerationPanel) -> GenerationRow:
    """Return the row of the stock model: its texts as the cells recorded them, its times as its own ``generate``."""
    record = record_of(panel)
    seeds = sorted({timing.seed for timing in panel.timings})
    stock = [contender for seed in seeds if (contender := panel.stock(seed)) is not None]
    seconds = seconds_by_size(stock)
    same = Mean(value=1.0, interval=(1.0, 1.0))
    return GenerationRow(
        label=STOCK,
        method=STOCK,
        scores=record.full_scores,
        score_std=None,
        full_text_score=same,
        token_match=same,
        speedups=speedups(
            record.num_layers, record.num_layers, flops=1, full_flops=1, seconds=seconds, full_seconds=seconds
        ),
        clocks=_clocks(stock),
    )


def mean_of(means: Sequence[Mean]) -> Mean:
    """Average over seeds; of intervals too, which are over prompts."""
    low, high = np.mean([mean.interval for mean in means], axis=0)
    return Mean(value=float(np.mean([mean.value for mean in means])), interval=(float(low), float(high)))


def _clocks(contenders: Sequence[DecodingContender]) -> dict[int, DecodingClock]:
    clocks = {}
    for size, rounds in seconds_by_size(contenders).items():
        samples = [
            sample
            for contender in contenders
            for sample in contender.samples
            if sample.batch_size == size and sample.round_seconds and not sample.regroups
        ]
        spreads = [np.ptp(sample.round_seconds) / np.median(sample.round_seconds) for sample in samples]
        prefill = [1000 * sum(batches) / sample.prompts for sample in samples for batches in sample.prefill_seconds]
        clocks[size] = DecodingClock(
            tokens_per_second=1 / float(np.median(rounds)),
            prefill_milliseconds=float(np.median(prefill)),
            spread=float(max(spreads)),
        )
    return clocks


def full_scores_by_prompt(cell: GenerationCell, column: str) -> NDArray[np.float64]:
    """Read what the full model scores for every test prompt; its texts are its own. Raises UserError."""
    if column in ("match", "rougeL_to_full"):
        return np.ones(cell.record.test_rows)
    return column_by_prompt(cell, f"full_{column}")


def column_by_prompt(cell: GenerationCell, name: str) -> NDArray[np.float64]:
    """Read a column of numbers, one a test prompt. Raises UserError if there is none of this name."""
    columns = predictions_of(cell.rows)
    if name not in columns:
        raise UserError(f"the predictions in {cell.rows.place} lack column {name!r}")
    return np.asarray(columns[name], dtype=np.float64)
