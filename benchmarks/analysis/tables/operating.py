"""Tables: for each (task, backbone) the operating points, the whole curves and the tests at equal cost."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.analysis.comparisons.curve_summaries import BUDGETS, CurveSummary, blind_score, curve_summaries
from benchmarks.analysis.panels.results import FULL, MAJORITY, Panel, load_panels
from benchmarks.analysis.rows.base import record_of
from benchmarks.analysis.rows.instances import TableRow, never_exit_overheads, table_rows
from benchmarks.analysis.tables.columns import (
    COST_COLUMNS,
    knob_text,
    line_costs,
    line_head,
    load_text,
    number,
    percent,
    range_text,
    score_text,
    seeds_text,
    short_reasons,
    speedup_at,
    spread_text,
    table_of,
    timed_seeds_text,
    timings_text,
)
from benchmarks.analysis.tables.equal_cost import contrast_tables, headline_lines, headline_tables
from benchmarks.analysis.tables.overall import overall_tables
from benchmarks.analysis.tables.provenance import machine
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.analysis.tables.writing import Tables
from benchmarks.specs.targets import Budget, Target

DEFAULT_BATCH_SIZES = [1, 32]
"""Shown, without times, where nothing was timed."""

CellText = Callable[[TableRow], str]
"""What a column shows of a row."""


def operating_table(panel: Panel, *, compact: bool = False) -> TextTable:
    """Return the main table of a panel: what every method does at the knobs chosen on validation data.

    Args:
        panel: the cells and timings of one (task, backbone).
        compact: for a terminal: the task's score alone, and short words for what a knob was chosen for.
    """
    rows = table_rows(panel)
    return table_of(panel, rows, _columns(panel, rows, compact), _notes(panel, rows, compact))


def _columns(panel: Panel, rows: Sequence[TableRow], compact: bool) -> dict[str, CellText]:
    reasons = short_reasons if compact else _reasons
    sizes = panel.batch_sizes or DEFAULT_BATCH_SIZES
    others = [name for name in rows[0].scores if name != panel.metric] if rows and not compact else []
    return {
        "method": _method,
        "knob": _knob,
        f"{panel.metric} % [95%]": _score_of(panel.metric),
        **{f"{name} %": _metric_of(name) for name in others},
        **COST_COLUMNS,
        **{f"ms/row b{size}": _milliseconds_at(size) for size in sizes},
        **{f"speed-up b{size}": speedup_at(size) for size in sizes},
        "chosen for": lambda row: MISSING if row.method == FULL else reasons(row.targets),
    }


def _method(row: TableRow) -> str:
    return "full (stock)" if row.method == FULL and row.label == FULL else row.label


def _reasons(targets: Sequence[Target]) -> str:
    """Write what a knob was chosen for, budgets as one list: ``budget 0.25, 0.50; within 1 point``."""
    budgets = [f"{target.layers_at_most:.2f}" for target in targets if isinstance(target, Budget)]
    others = [str(target) for target in targets if not isinstance(target, Budget)]
    return "; ".join([*([f"budget {', '.join(budgets)}"] if budgets else []), *others])


def _knob(row: TableRow) -> str:
    return "never exits" if row.method == FULL else knob_text(row)


def _score_of(metric: str) -> CellText:
    return lambda row: score_text(row.scores[metric], row.score_std, row.interval)


def _metric_of(metric: str) -> CellText:
    return lambda row: percent(row.scores[metric])


def _milliseconds_at(batch_size: int) -> CellText:
    return lambda row: f"{row.clocks[batch_size].milliseconds:.2f}" if batch_size in row.clocks else MISSING


def _notes(panel: Panel, rows: Sequence[TableRow], compact: bool) -> list[str]:
    """Say what a reader must know before believing the numbers."""
    record = record_of(panel)
    seeds = panel.seeds_of()
    notes = [
        "Knobs and parameters are chosen on validation data and reported on the test split"
        + (": best within a share of the layers (≤50%), or fewest layers within 1 point (-1 pt)" if compact else "")
        + "; within 1 point: of the full model's validation score with the same seed, without one of the method's own "
        "latest exits.",
        f"{record.train_rows} training, {record.validation_rows} validation, {record.test_rows} test rows; "
        f"{seeds_text(seeds)}; intervals: bootstrap over test rows{' and seeds' if len(seeds) > 1 else ''}.",
        f"Layers of {panel.num_layers}, 1-based; saved = 1 - layers / {panel.num_layers}; "
        "FLOPs ratio and speed-up = full model / method; b = batch size.",
        _timing_note(panel, rows),
        f"Machine: {machine(record.environment)}.",
    ]
    live, disagreeing = _live_rows(rows)
    if live:
        notes.append(f"Live runs and replays differ in {disagreeing} of {live} exits and answers.")
    if record.task_notes:
        notes.append(f"Task: {record.task_notes.rstrip('.')}.")
    return notes


def _timing_note(panel: Panel, rows: Sequence[TableRow]) -> str:
    if not panel.timings:
        return "Not timed."
    rounds = range_text([timing.rounds for timing in panel.timings])
    timed_rows = range_text([sample.rows for contender in panel.contenders for sample in contender.samples])
    note = (
        f"Times: medians of {rounds} rounds on the first {timed_rows} test rows, interleaved over all timed operating "
        f"points and the stock model{timings_text(panel)}{timed_seeds_text(rows)}{spread_text(panel, rows)}."
        f"{load_text(panel)}"
    )
    overheads = [f"{ratio:.2f} at batch {size}" for size, ratio in never_exit_overheads(panel).items()]
    return f"{note} Never-exit engine / stock: {', '.join(overheads)}." if overheads else note


def _live_rows(rows: Sequence[TableRow]) -> tuple[int, int]:
    points = [choice.point for row in rows for choice in row.choices]
    return sum(p.live_rows for p in points), sum(p.live_disagreements for p in points)


def summary_table(panel: Panel) -> TextTable:
    """Return the table of whole curves: area under them, and layers at no more than one point lost."""
    summaries = curve_summaries(panel)
    return TextTable(
        title=f"Whole curves · {panel.task} · {panel.backbone}",
        headings=(
            "method",
            "area, layers %",
            "area, FLOPs %",
            "area, time %",
            *(f"≤ {100 * budget:.0f}% of layers" for budget in BUDGETS),
            "layers at ≤ 1 point lost",
            f"{panel.metric} % there",
        ),
        cells=tuple(_summary_cells(summary) for summary in summaries),
        notes=(
            f"Area, layers: mean test score over all budgets from 1 to {panel.num_layers} layers, along the knobs that "
            f"are on the Pareto front of the validation data; below the earliest exit, a mix with {_floor(panel)}.",
            f"Area, FLOPs and time: the same over the operating points, from 1/{panel.num_layers} of the stock model's "
            "FLOPs, or of its time at batch 1, to all of it.",
            f"≤ 50% of layers: {panel.metric} on the test split, in percent, of the knob that scores best on "
            "validation data among those that run at most half of the layers there.",
            "≤ 1 point lost: the knob with the fewest layers whose validation score is within a point of the "
            "full model's; layers and score are those of the test split.",
        ),
        words=("method",),
    )


def _floor(panel: Panel) -> str:
    if panel.cells_of_method(MAJORITY):
        return f"the most frequent class ({100 * blind_score(panel):.1f}%)"
    return "nothing, for the most frequent class was not run"


def _summary_cells(summary: CurveSummary) -> tuple[str, ...]:
    return (
        summary.label,
        percent(summary.layers_area),
        percent(summary.flops_area),
        percent(summary.time_area),
        *(percent(summary.at_budgets[budget]) for budget in BUDGETS),
        number(summary.layers_within),
        percent(summary.score_within),
    )


def panel_tables(panel: Panel) -> list[TextTable]:
    """Return all tables of a panel that have anything to say."""
    return [operating_table(panel), summary_table(panel), *contrast_tables([panel])]


def operating_lines(panels: Sequence[Panel]) -> list[dict[str, object]]:
    """Return what ``table.csv`` holds: full precision, one line an operating point."""
    return [_csv_record(panel, row) for panel in panels for row in table_rows(panel)]


def _csv_record(panel: Panel, row: TableRow) -> dict[str, object]:
    record = line_head(panel, row) | {
        "metric": panel.metric,
        "score": row.scores[panel.metric],
        "score_low": row.interval[0],
        "score_high": row.interval[1],
        "score_std": "" if row.score_std is None else row.score_std,
    }
    record |= line_costs(panel, row)
    for size, clock in row.clocks.items():
        record |= {
            f"ms_b{size}": clock.milliseconds,
            f"ms_p90_b{size}": clock.p90,
            f"spread_b{size}": clock.spread,
        }
        record[f"speedup_b{size}"] = row.speedups.time_ratios.get(size, "")
    others = {name: value for name, value in row.scores.items() if name != panel.metric}
    return record | others


def all_tables(panels: Sequence[Panel]) -> list[TextTable]:
    """Return the headline, the tables of all panels, and the statistics over all tasks."""
    return [*first_tables(panels), *overall_tables(panels)]


def first_tables(panels: Sequence[Panel]) -> Iterator[TextTable]:
    """Yield what a reader needs most: methods at equal cost, then task by task."""
    yield from headline_tables(panels)
    for panel in panels:
        yield from panel_tables(panel)


TABLES = Tables(
    name="table",
    load=load_panels,
    terminal=partial(operating_table, compact=True),
    first=first_tables,
    every=all_tables,
    lines=operating_lines,
    beside={"headline.csv": headline_lines},
)
