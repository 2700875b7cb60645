"""What a report shows of generation."""

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.analysis.comparisons.ranking import block_name, compared_panels
from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.panels.results import FULL, role_of
from benchmarks.analysis.report.contents.content import Content, Exits, Headline, Measured, Standing
from benchmarks.analysis.report.contents.sortable import Cell, SortableTable, counted, mean_cells, number, with_interval
from benchmarks.analysis.rows.caveats import caveats_of_texts
from benchmarks.analysis.rows.texts import (
    STOCK,
    GenerationPanel,
    GenerationRow,
    curve_rows,
    generation_rows,
    load_generation_panels,
    row_near_half,
)
from benchmarks.analysis.tables.generation.decoding import decoding_table, generation_tables
from benchmarks.analysis.tables.generation.decoding_cost import text_cost_tables
from benchmarks.analysis.tables.overall import task_headings
from benchmarks.analysis.tables.text import TextTable
from benchmarks.specs.targets import Budget, Target, in_order


def _labels(panels: Sequence[GenerationPanel]) -> dict[str, str]:
    """Return the curves that compete, and their methods."""
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    return {label: method for label, method in methods.items() if role_of(method) != FULL}


def _headline(panels: Sequence[GenerationPanel]) -> Headline | None:
    """Return the tokens that are no longer the full model's within the budgets, means over tasks."""
    compared = compared_panels(panels)
    standings = [
        standing
        for label in _labels(compared)
        for target in _budgets(compared)
        if (standing := _standing(compared, label, target)) is not None
    ]
    if not standings:
        return None
    tasks = f"mean of {len(compared)} tasks" if len(compared) > 1 else block_name(compared[0])
    return Headline(
        title=f"Tokens that are not the full model's, {tasks}",
        against="the full model's own tokens",
        budgets="share of the layers",
        standings=standings,
        notes=(
            f"Tasks: {', '.join(map(block_name, compared))}.",
            "Points: the share of the places in which a text has the full model's token, in percent, minus 100; one "
            "token that differs changes all that follow it. At the knob that agrees best on validation prompts within "
            "a share of the layers; methods without such a knob on some task are left out there.",
        ),
    )


def _budgets(panels: Sequence[GenerationPanel]) -> list[Budget]:
    targets: list[Target] = in_order(
        target
        for panel in panels
        for label in panel.labels
        for row in curve_rows(panel, label)
        for target in row.targets
    )
    return [target for target in targets if isinstance(target, Budget)]


def _standing(panels: Sequence[GenerationPanel], label: str, budget: Budget) -> Standing | None:
    found = [row for panel in panels if (row := _row_for(panel, label, budget)) is not None]
    if len(found) < len(panels):
        return None
    low, high = found[0].token_match.interval
    return Standing(
        label=label,
        method=found[0].method,
        budget=budget.short,
        points=100 * float(np.mean([row.token_match.value for row in found])) - 100,
        interval=(100 * low - 100, 100 * high - 100) if len(found) == 1 else None,
        layers=float(np.mean([row.speedups.average_layers for row in found])),
    )


def _row_for(panel: GenerationPanel, label: str, target: Target) -> GenerationRow | None:
    rows = curve_rows(panel, label) if label in panel.methods else []
    return next((row for row in rows if target in row.targets), None)


def _measured(panel: GenerationPanel) -> list[Measured]:
    return [
        Measured(
            row=row,
            score=row.scores[panel.metric].value,
            interval=row.scores[panel.metric].interval,
            milliseconds={size: 1000 / clock.tokens_per_second for size, clock in row.clocks.items()},
            match=row.token_match.value,
        )
        for row in generation_rows(panel)
    ]


def _leaderboard(panels: Sequence[GenerationPanel]) -> SortableTable:
    """Return one row a method: tokens kept within every budget, and score, clock and layers at about half of them."""
    compared = compared_panels(panels)
    headline = _headline(panels)
    standings = {(one.label, one.budget): one for one in (headline.standings if headline else ())}
    budgets = [budget.short for budget in _budgets(compared)]
    methods = _labels(compared)
    labels = _best_first(methods, headline)
    sizes = sorted({size for panel in compared for size in panel.batch_sizes})
    return SortableTable(
        name="leaderboard",
        title=f"{counted(len(labels), 'method')}, means over {counted(len(compared), 'task')}",
        headings=(
            "method",
            *(f"tokens as in full {budget}, %" for budget in budgets),
            "score %",
            "layers saved %",
            *(f"clock, batch {size}" for size in sizes),
        ),
        rows=[
            (
                Cell(label),
                *(_kept_cell(standings.get((label, budget))) for budget in budgets),
                *_cells_near_half(compared, label, sizes),
            )
            for label in labels
        ],
        notes=(
            "Score (ROUGE to the reference), layers saved and clock (stock generate's time of decoding a token / "
            "method's, geometric mean over tasks) are at the budget nearest to half of the layers, on test prompts.",
        ),
        core=frozenset(place for place, label in enumerate(labels) if is_core(methods[label])),
    )


def _best_first(labels: Iterable[str], headline: Headline | None) -> list[str]:
    """Order curves by the largest share of tokens that they keep; those without a standing come last."""
    standings = headline.standings if headline else ()
    return sorted(
        labels, key=lambda label: -max((one.points for one in standings if one.label == label), default=-np.inf)
    )


def _kept_cell(standing: Standing | None) -> Cell:
    return number(None) if standing is None else number(100 + standing.points, ".1f")


def _cells_near_half(panels: Sequence[GenerationPanel], label: str, sizes: Sequence[int]) -> list[Cell]:
    rows = [(panel, row_near_half(panel, label) if label in panel.methods else None) for panel in panels]
    return mean_cells([None if row is None else (row, row.scores[panel.metric].value) for panel, row in rows], sizes)


def _by_task(panels: Sequence[GenerationPanel]) -> SortableTable:
    methods = _labels(panels)
    labels = _best_first(methods, _headline(panels))
    return SortableTable(
        name="by-task",
        title="Tokens as in the full model at about half of the layers, %, task by task",
        headings=("method", *task_headings(panels)),
        rows=[(Cell(label), *(_match_cell(panel, label) for panel in panels)) for label in labels],
        notes=("At the budget nearest to half of the layers, with its 95% interval over test prompts.",),
        core=frozenset(place for place, label in enumerate(labels) if is_core(methods[label])),
    )


def _match_cell(panel: GenerationPanel, label: str) -> Cell:
    row = row_near_half(panel, label) if label in panel.methods else None
    return number(None) if row is None else with_interval(row.token_match.value, row.token_match.interval, ".1f")


def _exits(panel: GenerationPanel) -> list[Exits]:
    rows = [row_near_half(panel, label) for label in panel.labels]
    return [_exits_of(row) for row in rows if row is not None and row.acceptance is None]  # drafts do not exit


def _exits_of(row: GenerationRow) -> Exits:
    counts = np.sum([choice.point.exit_histogram for choice in row.choices], axis=0)
    return Exits(row.label, row.method, row.speedups.average_layers, (counts / counts.sum()).tolist())


def _more(panels: Sequence[GenerationPanel]) -> list[TextTable]:
    """Return the comparisons at equal cost, times of batches, what became of calibrated thresholds."""
    return [*text_cost_tables(panels), *(table for panel in panels for table in generation_tables(panel)[1:])]


GENERATION = Content(
    unit="decoded token",
    full=STOCK,
    load=load_generation_panels,
    headline=_headline,
    leaderboard=_leaderboard,
    by_task=_by_task,
    measured=_measured,
    swept=lambda panel, label: [],
    mixed=lambda panels, label: [],
    exits=_exits,
    more=_more,
    how=lambda panel: decoding_table(panel).notes,
    warnings=caveats_of_texts,
)
