"""Tables of generation: for each (task, backbone) the operating points, and what promises were kept."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.analysis.rows.base import record_of
from benchmarks.analysis.rows.texts import (
    STOCK,
    GenerationPanel,
    GenerationRow,
    generation_rows,
    load_generation_panels,
)
from benchmarks.analysis.tables.columns import (
    COST_COLUMNS,
    knob_text,
    line_costs,
    line_head,
    load_text,
    metric_name,
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
from benchmarks.analysis.tables.generation.batches import batch_lines, batches_table, middle_batches_table
from benchmarks.analysis.tables.generation.decoding_cost import measures_table, text_cost_tables, text_headline_lines
from benchmarks.analysis.tables.provenance import machine
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.analysis.tables.writing import Tables
from benchmarks.specs.targets import Budget
from benchmarks.store.generation_records import CalibrationRecord, CalibrationResult

DEFAULT_BATCH_SIZES = [1, 8]
"""Shown, without times, where nothing was timed."""

CellText = Callable[[GenerationRow], str]
"""What a column shows of a row."""


def decoding_table(panel: GenerationPanel, *, compact: bool = False) -> TextTable:
    """Return the main table of a panel: what every method writes at the knobs chosen on validation prompts.

    Args:
        panel: the cells and timings of one (task, backbone).
        compact: for a terminal: the task's score alone, and short words for what a knob was chosen for.
    """
    rows = generation_rows(panel)
    return table_of(panel, rows, _columns(panel, compact), _notes(panel, rows))


def _columns(panel: GenerationPanel, compact: bool) -> dict[str, CellText]:
    sizes = panel.batch_sizes or DEFAULT_BATCH_SIZES
    others = [] if compact else [name for name in record_of(panel).full_scores if name != panel.metric]
    return {
        "method": lambda row: row.label,
        "knob": _knob,
        f"{metric_name(panel.metric)} % [95%]": _score_of(panel.metric),
        **{f"{metric_name(name)} %": _metric_of(name) for name in others},
        **({} if compact else {"ROUGE-L to full %": lambda row: percent(row.full_text_score.value)}),
        "match %": lambda row: percent(row.token_match.value),
        **COST_COLUMNS,
        **{f"tokens/s b{size}": _tokens_at(size) for size in sizes},
        **{f"decode speed-up b{size}": speedup_at(size) for size in sizes},
        "chosen for": lambda row: MISSING if row.method == STOCK else short_reasons(row.targets),
    }


def _knob(row: GenerationRow) -> str:
    if row.method == STOCK:
        return "full depth"
    return knob_text(row, f"{100 * row.acceptance:.0f}% of drafts accepted" if row.acceptance is not None else "")


def _score_of(metric: str) -> CellText:
    return lambda row: score_text(row.scores[metric].value, row.score_std, row.scores[metric].interval)


def _metric_of(metric: str) -> CellText:
    return lambda row: percent(row.scores[metric].value)


def _tokens_at(batch_size: int) -> CellText:
    return lambda row: f"{row.clocks[batch_size].tokens_per_second:.1f}" if batch_size in row.clocks else MISSING


def _notes(panel: GenerationPanel, rows: Sequence[GenerationRow]) -> list[str]:
    """Say what a reader must know before believing the numbers."""
    record = record_of(panel)
    budgets = any(isinstance(target, Budget) for row in rows for target in row.targets)
    notes = [
        "Knobs and parameters are chosen on validation prompts and reported on test prompts"
        + (": best agreement with the full model within a share of the layers (≤50%)" if budgets else "")
        + ", or fewest layers at which 90% of the tokens are the full model's (as full ≥90%).",
        f"Trained on {record.train_task} ({record.train_rows} rows); {record.validation_rows} validation, "
        f"{record.test_rows} test prompts ({record.truncated_prompts} cut to {record.max_prompt_tokens} tokens); "
        f"at most {record.max_new_tokens} new tokens, greedy; {seeds_text(panel.seeds_of())}; "
        "intervals: bootstrap over test prompts.",
        "Match: places in which a text has the full model's token; one that differs changes all that follow it.",
        f"Layers of {panel.num_layers}, 1-based, a decoded token: prompts, and the first token that they give, are at "
        f"full depth and not counted; {_exits_text(panel)}; saved = 1 - layers "
        f"/ {panel.num_layers}; FLOPs ratio: of decoding, full depth / method, exits asked and keys and values filled "
        "later included; decode speed-up = stock generate's time of decoding a token / method's; b = batch size.",
        _timing_note(panel, rows),
        f"Machine: {machine(record.environment)}.",
    ]
    if any(row.acceptance is not None for row in rows):
        notes.insert(4, "Where drafts are verified, layers are layer calls a token, and texts are the full model's.")
    if record.task_notes:
        notes.append(f"Task: {record.task_notes.rstrip('.')}.")
    return notes


def _exits_text(panel: GenerationPanel) -> str:
    exits = ", ".join(map(str, record_of(panel).exit_layers))
    closing = max(cell.record.closing_layers for cell in panel.cells)
    return f"exits of {exits} layers, the last {closing} among them" if closing else f"exits after layers {exits}"


def _timing_note(panel: GenerationPanel, rows: Sequence[GenerationRow]) -> str:
    if not panel.timings:
        return "Not timed."
    clocks = rows[0].clocks
    rounds = range_text([timing.rounds for timing in panel.timings])
    prompts = range_text([sample.prompts for contender in panel.contenders for sample in contender.samples])
    tokens = range_text([timing.max_new_tokens for timing in panel.timings])
    prefill = [f"{clock.prefill_milliseconds:.0f} ms a prompt at batch {size}" for size, clock in clocks.items()]
    return (
        f"Times: medians of {rounds} rounds on the first {prompts} test prompts, at most {tokens} new tokens, "
        f"interleaved over all timed operating points and stock generate{timings_text(panel)}{timed_seeds_text(rows)}; "
        f"tokens/s: of decoding, first tokens and the reading of prompts apart{spread_text(panel, rows)}; "
        f"stock generate reads prompts in {', '.join(prefill) or MISSING}.{load_text(panel)}"
    )


def calibration_table(panel: GenerationPanel) -> TextTable | None:
    """Return what became of the promises of calibrated thresholds; None where no cell studied any."""
    studies = [(cell.record.label, study) for cell in panel.cells if (study := cell.record.calibration) is not None]
    if not studies:
        return None
    return TextTable(
        title=f"Calibrated thresholds · {panel.task} · {panel.backbone}",
        headings=(
            "method",
            "promise",
            "delta",
            "broken %",
            "allowed %",
            "kept",
            "mean lambda",
            "layers",
            "held-out risk",
        ),
        cells=tuple(cells for label, study in studies for cells in _study_cells(label, study)),
        notes=(
            "Learn-then-Test chooses lambda on a random half of the pooled validation and test prompts; broken: splits "
            "in which the mean loss of the other half exceeds delta; allowed: epsilon plus the sampling error of so "
            f"many splits (one-sided, 95%); {studies[0][1].prompts} prompts.",
            "Textual: 1 - ROUGE-L to the full model's text; risk: ROUGE-L lost against the reference. By caution "
            "alone: on no half was a lambda below the most cautious one proven.",
        ),
        words=("method", "promise", "kept"),
    )


def _study_cells(label: str, study: CalibrationRecord) -> list[tuple[str, ...]]:
    return [
        (
            label,
            result.loss,
            f"{result.delta:g}",
            f"{100 * result.broken_share:.0f}",
            f"{100 * (result.epsilon + result.sampling_error):.0f}",
            _kept(result, study),
            f"{result.mean_lambda:.2f}",
            f"{result.mean_layers:.2f}",
            f"{result.mean_risk:.3f}",
        )
        for result in study.results
    ]


def _kept(result: CalibrationResult, study: CalibrationRecord) -> str:
    if result.broken_share > result.epsilon + result.sampling_error:
        return "no"
    return "by caution alone" if result.mean_lambda == study.lambdas[0] else "yes"


def generation_tables(panel: GenerationPanel) -> list[TextTable]:
    """Return all tables of a panel that have anything to say."""
    tables = [
        decoding_table(panel),
        measures_table(panel),
        batches_table(panel),
        calibration_table(panel),
    ]
    return [table for table in tables if table is not None]


def decoding_lines(panels: Sequence[GenerationPanel]) -> list[dict[str, object]]:
    """Return what ``table.csv`` holds: full precision, one line an operating point."""
    return [_csv_record(panel, row) for panel in panels for row in generation_rows(panel)]


def _csv_record(panel: GenerationPanel, row: GenerationRow) -> dict[str, object]:
    record = line_head(panel, row)
    means = {**row.scores, "rougeL_to_full": row.full_text_score, "match": row.token_match}
    for name, mean in means.items():
        record |= {name: mean.value, f"{name}_low": mean.interval[0], f"{name}_high": mean.interval[1]}
    record |= line_costs(panel, row) | {"acceptance": "" if row.acceptance is None else row.acceptance}
    for size, clock in row.clocks.items():
        record |= {
            f"tokens_per_second_b{size}": clock.tokens_per_second,
            f"prefill_ms_b{size}": clock.prefill_milliseconds,
            f"spread_b{size}": clock.spread,
            f"decode_speedup_b{size}": row.speedups.time_ratios.get(size, ""),
        }
    return record


def all_generation_tables(panels: Sequence[GenerationPanel]) -> list[TextTable]:
    """Return the tables at equal cost over all tasks, and those of every panel."""
    return [*text_cost_tables(panels), *(table for panel in panels for table in generation_tables(panel))]


def first_tables(panels: Sequence[GenerationPanel]) -> Iterator[TextTable]:
    """Yield what a reader needs most: methods at equal cost, batches of the first task that has times, task by task."""
    at_equal_cost = text_cost_tables(panels)
    yield from at_equal_cost[:1]
    yield from [table for panel in panels if (table := middle_batches_table(panel)) is not None][:1]
    yield from at_equal_cost[1:]
    for panel in panels:
        yield from generation_tables(panel)


TABLES = Tables(
    name="table",
    load=load_generation_panels,
    terminal=partial(decoding_table, compact=True),
    first=first_tables,
    every=all_generation_tables,
    lines=decoding_lines,
    beside={"headline.csv": text_headline_lines, "batches.csv": batch_lines},
)
