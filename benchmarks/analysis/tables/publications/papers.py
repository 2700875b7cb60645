"""The text of a paper's table beside ours: in the paper's shape, with what differs in a line each, and as CSV."""

from collections.abc import Iterable, Sequence
from typing import Literal

from benchmarks.analysis.comparisons.papers import Ours, PaperCell, PaperComparison, PaperRow, printed_full
from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.published import names
from benchmarks.analysis.panels.results import FULL, Panel
from benchmarks.analysis.tables.columns import OVER_NOTE, UNDER_NOTE, percent, reach_marks
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.specs.papers import PaperColumn, PrintedSpeed
from benchmarks.tasks.loader import spec_of

_MINUS = "ours - theirs"

_READING = (
    "Printed: score, points against the paper's own full model in brackets, at the printed speed-up. Ours: the same "
    "against our full model; two knobs, chosen on validation rows, are mixed to run L / speed-up layers, and the "
    "mixture is scored on test rows."
)
_READING_MINUS = (
    f"{_MINUS}: difference of the points, with its 95% paired bootstrap interval over our rows and seeds; theirs is "
    "taken as printed. No interval: the answers of one of the knobs were not kept row by row."
)


def paper_table(comparison: PaperComparison) -> TextTable:
    """Return the table of one backbone of ours."""
    table = comparison.table
    return TextTable(
        title=f"{table.title} · {comparison.backbone}",
        headings=("method", "whose", *(column.printed for column in table.columns)),
        cells=(
            *_printed_full_lines(comparison),
            (FULL, "ours", *(_our_full(comparison.panels.get(column.task)) for column in table.columns)),
            *(line for row in comparison.rows for line in _lines(comparison, row)),
        ),
        notes=(
            _READING,
            _READING_MINUS,
            f"{OVER_NOTE}{UNDER_NOTE}",
            *condition_lines(comparison),
            *table.notes,
            *missing_lines(comparison),
            f"Quoted from: {'; '.join(sorted(_sources(comparison)))}.",
        ),
        words=("method", "whose"),
    )


def _printed_full_lines(comparison: PaperComparison) -> Iterable[tuple[str, ...]]:
    table = comparison.table
    for method in {(method.full, method.backbone): method for method in table.methods}.values():
        scores = [printed_full(table, method, column) for column in table.columns]
        yield method.full, "printed", *(MISSING if score is None else f"{score:.1f}" for score in scores)


def _our_full(panel: Panel | None) -> str:
    return percent(None if panel is None else full_score(panel))


def full_score(panel: Panel) -> float | None:
    """Return our full model's test score, mean of the seeds."""
    return mean_of_all([cell.record.curve_test[-1].scores[panel.metric] for cell in panel.cells_of_method(FULL)])


def _lines(comparison: PaperComparison, row: PaperRow) -> Iterable[tuple[str, ...]]:
    cells = [row.cells.get(column.task) for column in comparison.table.columns]
    yield _printed_name(comparison, row), "printed", *(map(_printed_cell, cells))
    for label in row.labels:
        ours = [(cell, None if cell is None else cell.ours.get(label)) for cell in cells]
        yield label, "ours", *(_our_cell(one) for _, one in ours)
        yield "", _MINUS, *(_difference_cell(cell, one) for cell, one in ours)


def _printed_name(comparison: PaperComparison, row: PaperRow) -> str:
    same_name = {method.backbone for method in comparison.table.methods if method.printed == row.method.printed}
    of_backbone = f", {row.method.backbone}" if len(same_name) > 1 else ""
    return f"{row.method.printed}{of_backbone}{f', point {row.number}' if row.points > 1 else ''}"


def _printed_cell(cell: PaperCell | None) -> str:
    if cell is None:
        return MISSING
    return f"{_score(cell.printed.score, cell.printed.points)} at {cell.printed.speedup:.2f}x"


def _score(score: float | None, points: float | None) -> str:
    of_points = "" if points is None else f"({_signed(points)})"
    return " ".join(text for text in ("" if score is None else f"{100 * score:.1f}", of_points) if text)


def _signed(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # no -0.0


def _our_cell(ours: Ours | None) -> str:
    return MISSING if ours is None else f"{_score(ours.at.score, ours.at.points)}{reach_marks(ours.at.reaches)}"


def _difference_cell(cell: PaperCell | None, ours: Ours | None) -> str:
    difference = None if cell is None or ours is None else ours.minus(cell.printed)
    if cell is None or ours is None or difference is None:
        return MISSING
    interval = ours.interval_minus(cell.printed)
    return _signed(difference) + ("" if interval is None else f" [{_signed(interval[0])}, {_signed(interval[1])}]")


def _cells(comparison: PaperComparison) -> list[PaperCell]:
    return [cell for row in comparison.rows for cell in row.cells.values()]


def _sources(comparison: PaperComparison) -> set[str]:
    results = [cell.printed.result for cell in _cells(comparison)]
    return {f"{result.source}, {result.url}" for result in results}


def condition_lines(comparison: PaperComparison) -> list[str]:
    """Say which conditions differ, in a line each."""
    backbones = list(dict.fromkeys(method.backbone for method in comparison.table.methods))
    layers = {panel.num_layers for panel in comparison.panels.values()}
    of_layers = f", {layers.pop()} layers" if len(layers) == 1 else ""
    lines = [
        f"Backbone: theirs {', '.join(backbones)}; ours {comparison.backbone}{of_layers}{_paper_setting(comparison)}.",
        _split_line(comparison),
        _rows_line(comparison, "Training rows: ours", "train", "how many theirs had is not in the collection"),
        _rows_line(comparison, "Test rows: ours", "test", "theirs are those of their split"),
        _seeds_line(comparison),
        _metric_line(comparison),
        _speed_line(comparison),
    ]
    return [line for line in lines if line]


def _paper_setting(comparison: PaperComparison) -> str:
    paper = comparison.table.paper_setting.backbone
    return "" if comparison.backbone == paper else f" (`--run --backbones {paper}` trains the paper's, with a GPU)"


def _known(comparison: PaperComparison) -> list[tuple[PaperColumn, Panel]]:
    columns = comparison.table.columns
    return [(column, comparison.panels[column.task]) for column in columns if column.task in comparison.panels]


def _split_line(comparison: PaperComparison) -> str:
    theirs = names().splits[comparison.table.table]
    firsts = [panel.cells[0].record.task_notes.split(".")[0] for _, panel in _known(comparison)]
    ours = list(dict.fromkeys(first if "dev" in first else "the task's test split" for first in firsts))
    if not ours or (theirs == "GLUE dev" and all("dev" in one for one in ours)):
        return ""
    return f"Split: theirs {theirs}; ours: {'; '.join(ours)}."


def _rows_line(comparison: PaperComparison, subject: str, split: Literal["train", "test"], theirs: str) -> str:
    """Name the rows of ours, task by task, where they are not all that the task has."""
    shown = []
    for column, panel in _known(comparison):
        record = panel.cells[0].record
        rows = record.train_rows if split == "train" else record.test_rows
        every = spec_of(column.task)[0].complete_rows.get(split)
        if every is None or rows < every:
            shown.append(f"{column.printed} {rows:,}{f' of {every:,}' if every else ''}")
    return f"{subject} {', '.join(shown)}; {theirs}." if shown else ""


def _seeds_line(comparison: PaperComparison) -> str:
    labels = [FULL, *dict.fromkeys(label for row in comparison.rows for label in row.labels)]
    counts = []
    for label in labels:
        seeds = {len(panel.seeds_of(label)) for _, panel in _known(comparison)} - {0}
        if seeds:
            counts.append(f"{label} {'/'.join(map(str, sorted(seeds)))}")
    return (
        f"Seeds: ours {', '.join(counts)}; points are against the full models of the same seeds, and theirs are not in "
        "the collection."
        if counts
        else ""
    )


def _metric_line(comparison: PaperComparison) -> str:
    printed: dict[tuple[str, str], list[str]] = {}
    for column in comparison.table.columns:
        for metric in {cell.printed.result.metric for cell in _cells(comparison) if cell.column is column}:
            if metric.lower().removeprefix("delta ").removesuffix(" vs baseline") != column.metric:
                printed.setdefault((metric, column.metric), []).append(column.printed)
    found = [f"{', '.join(columns)}: theirs '{theirs}', ours {ours}" for (theirs, ours), columns in printed.items()]
    return f"Metric: {'; '.join(found)}." if found else ""


def _speed_line(comparison: PaperComparison) -> str:
    if comparison.table.speed is PrintedSpeed.LAYERS:
        return ""
    meanings = {names().speedup_definitions[cell.printed.result.speedup_definition] for cell in _cells(comparison)}
    converted = ", read as 1 / (1 - saved)" if comparison.table.speed is PrintedSpeed.TIME_SAVED else ""
    return f"Speed-up: theirs {', '.join(sorted(meanings))}{converted}; ours L / average layers."


def missing_lines(comparison: PaperComparison) -> list[str]:
    """Say what has no records, and the command that makes them."""
    tasks, of_labels = [], []
    for column in comparison.table.columns:
        panel = comparison.panels.get(column.task)
        labels = {label for row in comparison.rows if column.task in row.cells for label in row.labels}
        if panel is None:
            tasks.append(column.printed)
        elif lacking := sorted(labels - panel.methods.keys()):
            of_labels.append(f"{', '.join(lacking)} on {column.printed}")
    missing = [", ".join(tasks), *of_labels] if tasks else of_labels
    if not missing:
        return []
    return [f"{MISSING}: no records of {'; '.join(missing)}; `{comparison.command}` makes them."]


def paper_lines(comparisons: Sequence[PaperComparison]) -> list[dict[str, object]]:
    """Return what the CSV file holds: a line for every printed point and curve of ours, in percent."""
    return [
        _csv_line(comparison, row, cell, label)
        for comparison in comparisons
        for row in comparison.rows
        for cell in row.cells.values()
        for label in row.labels
    ]


def _csv_line(comparison: PaperComparison, row: PaperRow, cell: PaperCell, label: str) -> dict[str, object]:
    printed, ours = cell.printed, cell.ours.get(label)
    panel = comparison.panels.get(cell.column.task)
    line: dict[str, object] = {
        "table": comparison.table.name,
        "method": row.method.printed,
        "backbone": row.method.backbone,
        "task": cell.column.printed,
        "printed metric": printed.result.metric,
        "printed value": printed.result.value,
        "printed speed-up": printed.result.speedup,
        "speed-up": f"{printed.speedup:.4g}",
        "their points": _percent(printed.points),
        "our method": label,
        "our backbone": comparison.backbone,
        "our task": cell.column.task,
        "our metric": cell.column.metric,
        "our full model": _percent(None if panel is None else full_score(panel)),
    }
    low, high = (ours.interval if ours else None) or (None, None)
    minus_low, minus_high = (ours.interval_minus(printed) if ours else None) or (None, None)
    return line | {
        "our score": _percent(ours.at.score if ours else None),
        "our points": _percent(ours.at.points if ours else None),
        "our points low": _percent(low),
        "our points high": _percent(high),
        "our layers": f"{ours.at.layers:.3f}" if ours else "",
        "budget": "/".join(sorted({reach.value for reach in ours.at.reaches})) if ours else "",
        "ours - theirs": _percent(ours.minus(printed) if ours else None),
        "ours - theirs low": _percent(minus_low),
        "ours - theirs high": _percent(minus_high),
        "source": printed.result.source,
        "url": printed.result.url,
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
