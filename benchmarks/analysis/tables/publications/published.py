"""Our numbers beside those that papers print: what is comparable, and what nobody published."""

from collections.abc import Sequence

from benchmarks.analysis.comparisons.equal_cost import AtCost, at_equal_cost
from benchmarks.analysis.panels.published import PublishedResult, names, published_for
from benchmarks.analysis.panels.results import REFERENCES, Panel, load_panels
from benchmarks.analysis.tables.columns import number
from benchmarks.analysis.tables.equal_cost import headline_lines
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.analysis.tables.writing import Tables

_NEVER_PUBLISHED = tuple(method for method in REFERENCES if method != "static")


def published_table(panel: Panel) -> TextTable:
    """Return our test scores at the middle budget beside every printed figure of the same method and task.

    A method has a line for each printed figure, and one line of "n/a" where nobody printed any; methods that were not
    run here follow.
    """
    ran = {label: method for label, method in panel.methods.items() if method not in _NEVER_PUBLISHED}
    not_run = [method for method in dict.fromkeys(names().methods.values()) if method not in ran.values()]
    lines, middle = [], panel.speedups[1]
    for label, method in ran.items():
        ours = _our_cells(panel, at_equal_cost(panel, label, middle), label)
        printed = published_for(panel.task, method)
        lines += [(*ours, *_printed_cells(result)) for result in printed] or [(*ours, *[MISSING] * 7)]
    for method in not_run:
        ours = _our_cells(panel, None, method)
        lines += [(*ours, *_printed_cells(result)) for result in published_for(panel.task, method)]
    return TextTable(
        title=f"Beside published figures · {panel.task} · {panel.backbone}",
        headings=(
            "method",
            "ours %",
            "our metric",
            "layer ratio",
            "FLOPs ratio",
            "time ratio b1",
            "printed",
            "metric",
            "backbone",
            "split",
            "speed-up",
            "its definition",
            "source",
        ),
        cells=tuple(lines),
        notes=(
            f"Ours: {panel.backbone}, {panel.num_layers} layers, the task's test split"
            f"{_split_note(panel)}; two knobs chosen on validation data and mixed to run L / {middle:g} layers "
            "there; layer ratio = L / average layers of the test rows, FLOPs ratio and time ratio (batch size 1) = "
            "full model / method.",
            "Printed: quoted from the source with its own backbone, metric, split and meaning of speed-up; other "
            "backbones and splits are no comparison of methods. n/a: not measured, or not in the collection "
            "(benchmarks/published/README.md).",
        ),
        words=("method", "our metric", "metric", "backbone", "split", "its definition", "source"),
    )


def _our_cells(panel: Panel, ours: AtCost | None, label: str) -> tuple[str, ...]:
    if ours is None:
        return (label, MISSING, panel.metric, MISSING, MISSING, MISSING)
    return (
        label,
        f"{100 * ours.score:.1f}",
        panel.metric,
        f"{panel.num_layers / ours.layers:.2f}",
        number(ours.flops_ratio),
        number(ours.time_ratios.get(1)),
    )


def _printed_cells(result: PublishedResult) -> tuple[str, ...]:
    mapping = names()
    return (
        result.value or MISSING,
        result.metric,
        result.backbone,
        mapping.splits[result.table],
        result.speedup or MISSING,
        mapping.speedup_definitions[result.speedup_definition],
        f"{result.source}: {result.method}",
    )


def _split_note(panel: Panel) -> str:
    notes = panel.cells[0].record.task_notes
    return f" ({notes.split('.')[0]})" if "dev" in notes.split(".")[0] else ""


def published_tables(panels: Sequence[Panel]) -> list[TextTable]:
    """Return the tables of all panels."""
    return [published_table(panel) for panel in panels]


def published_lines(panels: Sequence[Panel]) -> list[dict[str, object]]:
    """Return what ``published.csv`` holds: the lines of all tables."""
    return [
        {"task": panel.task, "our backbone": panel.backbone, **dict(zip(table.headings, cells, strict=True))}
        for panel, table in zip(panels, published_tables(panels), strict=True)
        for cells in table.cells
    ]


TABLES = Tables(
    name="published",
    load=load_panels,
    terminal=published_table,
    first=published_tables,
    every=published_tables,
    lines=published_lines,
    beside={"headline.csv": headline_lines},
    most_lines=None,
)
