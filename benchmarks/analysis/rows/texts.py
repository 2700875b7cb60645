"""The rows of a table of generation: for every method and target, the knob chosen on validation, and its test texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis.curves import time_ratio
from benchmarks.analysis.results import FULL, BasePanel, load_panels_of, role_of
from benchmarks.analysis.rows.choices import DecodingChoice, choices_for, targets_of
from benchmarks.analysis.rows.instances import predictions_of, varied_parameters
from benchmarks.analysis.statistics import mean_and_std
from benchmarks.store.folders import Fault
from benchmarks.store.generation_records import (
    DecodingContender,
    DecodingTimingRecord,
    GenerationRecord,
    Mean,
)
from benchmarks.store.stored_results import BaseStoredCell
from benchmarks.store.targets import HALF, Budget, Target
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
        speedup: the stock model's time of decoding a token / this one's, the median over the rounds; None where the
            stock model was not timed.
    """

    tokens_per_second: float
    prefill_milliseconds: float
    spread: float
    speedup: float | None


@dataclass(frozen=True)
class GenerationRow:
    """One operating point of one curve, averaged over seeds; the stock model's own ``generate`` is one, too.

    Attributes:
        label, method: the curve, and the method behind it; both :data:`STOCK` for the stock model.
        knob_name, knobs: the knob's name, and its value for each seed.
        parameters: of the chosen cells, where they differ between the cells of the label (a grid).
        targets: why this knob, on validation prompts.
        scores: ROUGE against the references, by metric.
        score_std: standard deviation of the task's score over seeds; None for one seed.
        full_text_score: ROUGE-L against the full model's text.
        token_match: share of the places with the full model's token.
        average_layers, saved_fraction: layers a decoded token ran, and ``1 - layers / L``.
        flops_ratio: operations of decoding, full depth / here.
        acceptance: share of the drafted tokens that were accepted; None where nothing is drafted.
        clocks: by batch size; empty if not timed.
        choices: what was chosen, one a seed.
    """

    label: str
    method: str
    knob_name: str
    knobs: tuple[float, ...]
    parameters: tuple[str, ...]
    targets: tuple[Target, ...]
    scores: dict[str, Mean]
    score_std: float | None
    full_text_score: Mean
    token_match: Mean
    average_layers: float
    saved_fraction: float
    flops_ratio: float
    acceptance: float | None = None
    clocks: dict[int, DecodingClock] = field(default_factory=dict)
    choices: tuple[DecodingChoice, ...] = ()


def load_generation_panels(
    out_dir: Path, labels: Sequence[str] | None = None
) -> tuple[list[GenerationPanel], list[Fault]]:
    """Read a results folder of generation; see :func:`benchmarks.analysis.results.load_panels`."""
    return load_panels_of(GenerationRecord, DecodingTimingRecord, out_dir, labels)


def generation_rows(panel: GenerationPanel) -> list[GenerationRow]:
    """Return the rows of a panel: the stock model first, then curve by curve, fewest layers first."""
    return [stock_row(panel), *(row for label in panel.labels for row in curve_rows(panel, label))]


def curve_rows(panel: GenerationPanel, label: str) -> list[GenerationRow]:
    """Return the rows of one curve; targets that choose the same knobs share a row."""
    return panel.once(f"rows of {label}", lambda: _curve_rows(panel, label))


def _curve_rows(panel: GenerationPanel, label: str) -> list[GenerationRow]:
    chosen: dict[tuple[tuple[str, float], ...], tuple[list[Target], list[DecodingChoice]]] = {}
    for target in targets_of(panel.cells_of(label)):
        choices = choices_for(panel, label, target)
        key = tuple((choice.cell.record.key, choice.point.knob) for choice in choices)
        if choices:
            chosen.setdefault(key, ([], choices))[0].append(target)
    rows = [_row(panel, reasons, choices) for reasons, choices in chosen.values()]
    return sorted(rows, key=lambda row: row.average_layers)


def _row(panel: GenerationPanel, reasons: Sequence[Target], choices: Sequence[DecodingChoice]) -> GenerationRow:
    first, points = choices[0].cell.record, [choice.point for choice in choices]
    layers = float(np.mean([point.average_layers for point in points]))
    drafts = [point.speculation for point in points if point.speculation is not None]
    contenders = [(c.cell.record.seed, panel.contender(c.cell.record, c.point.knob)) for c in choices]
    timed = [(here, panel.stock(seed, beside=here)) for seed, here in contenders]
    return GenerationRow(
        label=first.label,
        method=first.method,
        knob_name=first.knob_name,
        knobs=tuple(point.knob for point in points),
        parameters=tuple(varied_parameters(choice.cell, panel.cells_of(first.label)) for choice in choices),
        targets=tuple(reasons),
        scores={name: mean_of([point.scores[name] for point in points]) for name in points[0].scores},
        score_std=mean_and_std([point.scores[first.metric].value for point in points])[1],
        full_text_score=mean_of([point.full_text_score for point in points]),
        token_match=mean_of([point.token_match for point in points]),
        average_layers=layers,
        saved_fraction=1 - layers / first.num_layers,
        flops_ratio=sum(p.full_decode_flops for p in points) / max(sum(p.decode_flops for p in points), 1),
        acceptance=sum(d.accepted for d in drafts) / max(sum(d.drafted for d in drafts), 1) if drafts else None,
        clocks=_clocks([here for here, _ in timed], [stock for _, stock in timed]),
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
    records = [cell.record for cell in panel.cells]
    seeds = sorted({timing.seed for timing in panel.timings})
    stock = [panel.stock(seed) for seed in seeds]
    same = Mean(value=1.0, interval=(1.0, 1.0))
    return GenerationRow(
        label=STOCK,
        method=STOCK,
        knob_name="",
        knobs=(),
        parameters=(),
        targets=(),
        scores=full_record(panel).full_scores,
        score_std=None,
        full_text_score=same,
        token_match=same,
        average_layers=float(records[0].num_layers),
        saved_fraction=0.0,
        flops_ratio=1.0,
        clocks=_clocks(stock, stock),
    )


def full_record(panel: GenerationPanel) -> GenerationRecord:
    """Return the record that describes the panel as a whole: the full model's where there is one."""
    full = [cell.record for cell in panel.cells if role_of(cell.record.method) == FULL]
    return (full or [cell.record for cell in panel.cells])[0]


def mean_of(means: Sequence[Mean]) -> Mean:
    """Average over seeds; of intervals too, which are over prompts."""
    low, high = np.mean([mean.interval for mean in means], axis=0)
    return Mean(value=float(np.mean([mean.value for mean in means])), interval=(float(low), float(high)))


def _clocks(
    contenders: Sequence[DecodingContender | None], stock: Sequence[DecodingContender | None]
) -> dict[int, DecodingClock]:
    """Return the clocks by batch size; none unless all seeds are timed."""
    here = [contender for contender in contenders if contender is not None]
    if not here or len(here) < len(contenders):
        return {}
    full = [contender for contender in stock if contender is not None]
    seconds, stock_seconds = _seconds_by_size(here), _seconds_by_size(full)
    clocks = {}
    for size, rounds in seconds.items():
        samples = [sample for contender in here for sample in contender.samples if sample.batch_size == size]
        prefill = [1000 * sum(batches) / sample.prompts for sample in samples for batches in sample.prefill_seconds]
        same_rounds = len(stock_seconds.get(size, [])) == len(rounds)
        clocks[size] = DecodingClock(
            tokens_per_second=1 / float(np.median(rounds)),
            prefill_milliseconds=float(np.median(prefill)),
            spread=float(np.ptp(rounds) / np.median(rounds)),
            speedup=time_ratio(stock_seconds[size], rounds) if same_rounds else None,
        )
    return clocks


def _seconds_by_size(contenders: Sequence[DecodingContender]) -> dict[int, list[float]]:
    seconds: dict[int, list[float]] = {}
    for contender in contenders:
        for sample in contender.samples:
            if sample.seconds_a_token:
                seconds.setdefault(sample.batch_size, []).extend(sample.seconds_a_token)
    return seconds


def scores_by_prompt(choice: DecodingChoice, column: str) -> NDArray[np.float64]:
    """Read one score of an operating point for every test prompt: ``match``, or ``rougeL`` and the other metrics.

    Raises UserError if it cannot be read.
    """
    return _column(choice.cell, f"{column}_{choice.number}")


def full_scores_by_prompt(cell: GenerationCell, column: str) -> NDArray[np.float64]:
    """Read what the full model scores for every test prompt; it matches itself. Raises UserError."""
    if column == "match":
        return np.ones(cell.record.test_rows)
    return _column(cell, f"full_{column}")


def _column(cell: GenerationCell, name: str) -> NDArray[np.float64]:
    columns = predictions_of(cell.rows)
    if name not in columns:
        raise UserError(f"the predictions in {cell.rows.place} lack column {name!r}")
    return np.asarray(columns[name], dtype=np.float64)
