"""What tables of operating points have in common, whatever their rows are."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.panels.select import Reach
from benchmarks.analysis.rows.base import BaseRow, format_value
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.specs.targets import Target, in_words

_METRIC_NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
_MARKS = {Reach.OVER: "†", Reach.UNDER: "‡"}
OVER_NOTE = "†: even the cheapest knob costs more"
UNDER_NOTE = "; ‡: even the best knob costs less, and it stands here."


def table_of(
    panel: AnyPanel, rows: Sequence[Any], columns: dict[str, Callable[[Any], str]], notes: Sequence[str]
) -> TextTable:
    """Return the operating points of a panel: a row each, and in every column what its function says of the row."""
    return TextTable(
        title=f"{panel.task} · {panel.backbone}",
        headings=tuple(columns),
        cells=tuple(tuple(value(row) for value in columns.values()) for row in rows),
        notes=tuple(notes),
        words=("method", "knob", "chosen for"),
    )


def metric_name(metric: str) -> str:
    """Return a metric of texts as papers write it."""
    return _METRIC_NAMES.get(metric, metric)


def number(value: float | None) -> str:
    """Write a number that may be unknown."""
    return MISSING if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Write a share that may be unknown, in percent."""
    return MISSING if value is None else f"{100 * value:.1f}"


def points(difference: float, interval: tuple[float, float] | None) -> str:
    """Write a difference of scores in points, with its interval where there is one."""
    return f"{100 * difference:+.1f}{in_brackets(interval)}"


def in_brackets(interval: tuple[float, float] | None) -> str:
    """Write an interval of points behind its mean; nothing where it is not known."""
    return "" if interval is None else " [{:+.1f}, {:+.1f}]".format(*(100 * bound for bound in interval))


def score_text(value: float, deviation: float | None, interval: tuple[float, float]) -> str:
    """Write a score in percent, its deviation over seeds where there are several, and its interval."""
    low, high = interval
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * value:.1f}{spread} [{100 * low:.1f}, {100 * high:.1f}]"


def knob_text(row: BaseRow, *more: str) -> str:
    """Write the knobs of all seeds, and the parameters that a grid chose: ``threshold=0.1 to 0.3 · alpha=0.1``."""
    knobs = sorted({format_value(knob) for knob in row.knobs}, key=float)
    value = knobs[0] if len(knobs) == 1 else f"{knobs[0]} to {knobs[-1]}"
    return " · ".join(dict.fromkeys(filter(None, [f"{row.knob_name}={value}", *row.parameters, *more])))


def short_reasons(targets: Sequence[Target]) -> str:
    """Write what a knob was chosen for in few columns: ``≤25%, ≤50%, -1 pt``."""
    return ", ".join(target.short for target in targets)


COST_COLUMNS: dict[str, Callable[[BaseRow], str]] = {
    "layers": lambda row: f"{row.speedups.average_layers:.2f}",
    "saved %": lambda row: percent(row.speedups.saved_fraction),
    "FLOPs ratio": lambda row: number(row.speedups.flops_ratio),
}
"""What a row cost, by heading."""


def speedup_at(batch_size: int) -> Callable[[BaseRow], str]:
    """Return the column of the speed-up by the clock at one batch size."""
    return lambda row: number(row.speedups.time_ratios.get(batch_size))


def line_head(panel: AnyPanel, row: BaseRow) -> dict[str, object]:
    """Return the first fields of a line of ``table.csv``: whose numbers it has."""
    return {
        "task": panel.task,
        "backbone": panel.backbone,
        "label": row.label,
        "method": row.method,
        "parameters": "; ".join(dict.fromkeys(filter(None, row.parameters))),
        "knob": row.knob_name,
        "knob_values": " ".join(repr(knob) for knob in row.knobs),
        "seeds": " ".join(map(str, row.seeds)),
        "chosen_for": in_words(row.targets),
    }


def line_costs(panel: AnyPanel, row: BaseRow) -> dict[str, object]:
    """Return the fields of a line of ``table.csv`` that say what a row cost."""
    ratios = row.speedups
    return {
        "average_layers": ratios.average_layers,
        "num_layers": panel.num_layers,
        "saved_fraction": ratios.saved_fraction,
        "layer_ratio": ratios.layer_ratio,
        "flops_ratio": "" if ratios.flops_ratio is None else ratios.flops_ratio,
    }


def seeds_text(seeds: Collection[int]) -> str:
    """Name seeds: ``seeds 0, 1``."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def timed_seeds_text(rows: Sequence[BaseRow]) -> str:
    """Say whose times are not of all seeds: ``; of seed 0 alone: deebert, ztw``; nothing where all are."""
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        if row.timed_seeds and row.timed_seeds != row.seeds and row.label not in by_seeds.get(row.timed_seeds, ()):
            by_seeds.setdefault(row.timed_seeds, []).append(row.label)
    return "".join(f"; of {seeds_text(seeds)} alone: {', '.join(labels)}" for seeds, labels in by_seeds.items())


def spread_text(panel: AnyPanel, rows: Sequence[Any]) -> str:
    """Say by how much rounds differ at most, ``; spread, ..., at most 12% at batch 1``; nothing if no row was timed."""
    spreads = {
        size: max(row.clocks[size].spread for row in rows if size in row.clocks)
        for size in panel.batch_sizes
        if any(size in row.clocks for row in rows)
    }
    if not spreads:
        return ""
    most = ", ".join(f"{100 * spread:.0f}% at batch {size}" for size, spread in spreads.items())
    return f"; spread, (slowest - fastest round) / median, at most {most}"


def load_text(panel: AnyPanel) -> str:
    """Say how busy the machine was before the panel was timed, where it was recorded."""
    loads = [timing.environment_before.get("load_average") for timing in panel.timings]
    known = [load[0] for load in loads if isinstance(load, list) and load]
    return f" Load average before: {range_text(known)}." if known else ""


def timings_text(panel: AnyPanel) -> str:
    """Say that times come from several timings, each with the stock model in its rounds, where they do."""
    return f" in each of {len(panel.timings)} timings" if len(panel.timings) > 1 else ""


def range_text(values: Sequence[float]) -> str:
    """Say between which numbers some lie: ``3``, or ``3 to 5``."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def reach_marks(reaches: Collection[Reach]) -> str:
    """Return the marks of what was reached of a budget with some seed on some task; the notes above explain them."""
    return "".join(mark for reach, mark in _MARKS.items() if reach in reaches)
