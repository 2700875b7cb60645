"""Every operating point of every task in one table."""

from collections.abc import Sequence

from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.report.contents.content import Content, Measured
from benchmarks.analysis.report.contents.sortable import Cell, SortableTable, number, ratio, with_interval
from benchmarks.analysis.tables.columns import knob_text, short_reasons
from benchmarks.analysis.tables.overall import task_headings


def operating_points(panels: Sequence[AnyPanel], content: Content) -> SortableTable:
    """Return one row an operating point, panel by panel, the stock model first."""
    sizes = sorted({size for panel in panels for size in panel.batch_sizes})
    found = [
        (task, one)
        for task, panel in zip(task_headings(panels), panels, strict=True)
        for one in content.measured(panel)
    ]
    has_match = any(one.match is not None for _, one in found)
    return SortableTable(
        name="points",
        title=f"{len(found)} operating points",
        headings=(
            "method",
            "task",
            "score % [95%]",
            *(["tokens as in full, %"] if has_match else []),
            "layers",
            "saved %",
            "FLOPs",
            *(heading for size in sizes for heading in (f"ms, batch {size}", f"clock, batch {size}")),
            "chosen for",
            "knob",
        ),
        rows=[_cells(task, one, sizes, has_match, content) for task, one in found],
        notes=(
            "Knobs are chosen on validation data and reported on test rows: the best within a share of the layers "
            "(≤50%), the fewest layers within a point of the full model (-1 pt), or with so many answers of the full "
            "model's (as full). Score: the task's metric. Saved: 1 - "
            f"layers / L. FLOPs and clock: full model / method; ms: milliseconds a {content.unit}.",
        ),
        core=frozenset(place for place, (_, one) in enumerate(found) if is_core(one.row.method)),
    )


def _cells(task: str, one: Measured, sizes: Sequence[int], has_match: bool, content: Content) -> list[Cell]:
    costs, stock = one.row.speedups, one.row.label == content.full
    match = None if one.match is None else 100 * one.match
    return [
        Cell(one.row.label),
        Cell(task),
        with_interval(one.score, one.interval, ".1f"),
        *([number(match, ".1f")] if has_match else []),
        number(costs.average_layers),
        number(100 * costs.saved_fraction, ".0f"),
        ratio(costs.flops_ratio),
        *(cell for size in sizes for cell in (number(one.milliseconds.get(size)), ratio(costs.time_ratios.get(size)))),
        Cell("" if stock else short_reasons(one.row.targets)),
        Cell("full depth" if stock else knob_text(one.row)),
    ]
