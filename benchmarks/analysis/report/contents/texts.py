"""What a report shows of generation."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.analysis.report.contents.content import Content, Exits, Measured
from benchmarks.analysis.report.contents.headline import points_at_equal_cost
from benchmarks.analysis.report.contents.leaderboard import leaderboard, points_by_task
from benchmarks.analysis.rows.caveats import caveats_of_texts
from benchmarks.analysis.rows.texts import (
    STOCK,
    GenerationPanel,
    GenerationRow,
    generation_rows,
    load_generation_panels,
    row_near_half,
)
from benchmarks.analysis.tables.equal_cost import TEXT_POINTS_NOTE
from benchmarks.analysis.tables.generation.decoding import decoding_table, generation_tables
from benchmarks.analysis.tables.generation.decoding_cost import text_cost_tables
from benchmarks.analysis.tables.text import TextTable


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
    headline=partial(points_at_equal_cost, how=TEXT_POINTS_NOTE),
    leaderboard=leaderboard,
    by_task=points_by_task,
    measured=_measured,
    swept=lambda panel, label: [],
    exits=_exits,
    more=_more,
    how=lambda panel: decoding_table(panel).notes,
    warnings=caveats_of_texts,
)
