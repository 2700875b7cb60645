"""The table of batches: how fast texts are written in step and regrouped, beside stock ``generate`` and the layers."""

from collections.abc import Sequence

from benchmarks.analysis.comparisons.batches import Batch, BatchTimes, TimedPoint, batches_of, points_at, timed_batches
from benchmarks.analysis.rows.base import format_value
from benchmarks.analysis.rows.texts import GenerationPanel
from benchmarks.analysis.tables.text import MISSING, TextTable


def batches_table(panel: GenerationPanel) -> TextTable | None:
    """Return the times of all that was timed; None where nothing was, or no batch was regrouped."""
    return _table(panel, timed_batches(panel))


def middle_batches_table(panel: GenerationPanel) -> TextTable | None:
    """Return the same of one knob a curve: the one nearest to the layers of the middle budget."""
    return _table(panel, points_at(timed_batches(panel), panel.num_layers / panel.speedups[1]))


def _table(panel: GenerationPanel, points: Sequence[TimedPoint]) -> TextTable | None:
    batches = batches_of(points)
    if not any(batch.in_flight > batch.size for batch in batches):
        return None
    return TextTable(
        title=f"Batches in step and regrouped · {panel.task} · {panel.backbone}",
        headings=(
            "method",
            "knob",
            "layers",
            *(f"batch {batch.name}" for batch in batches),
            *(f"latency {batch.name}" for batch in batches),
        ),
        cells=tuple(_cells(point, batches) for point in points),
        notes=(
            "Batch: tokens a second of decoding (x stock generate's with as many prompts under way; share of the speed "
            "that the layers allow: stock generate's at the same batch, with its layers cut to those called and its "
            "embedding and LM head left). 8 of 32: of 32 prompts under way, 8 run at a time; the others are in step.",
            "Latency: seconds until a text has ended since all under way were asked, reading included: median / 90th "
            "percentile. Speeds: medians over rounds, interleaved over all that is timed. n/a: has its own decoding.",
        ),
        words=("method", "knob"),
    )


def _cells(point: TimedPoint, batches: Sequence[Batch]) -> tuple[str, ...]:
    found = [point.times.get(batch) for batch in batches]
    return (
        point.label,
        "full depth" if point.knob is None else f"{point.knob_name}={format_value(point.knob)}",
        f"{point.layers:.2f}",
        *map(_speed, found),
        *map(_latency, found),
    )


def _speed(times: BatchTimes | None) -> str:
    if times is None:
        return MISSING
    more = [] if times.speedup is None else [f"{times.speedup:.2f}x"]
    more += [] if times.of_allowed is None else [f"{times.of_allowed:.2f}"]
    return f"{times.tokens_per_second:.1f}" + (f" ({'; '.join(more)})" if more else "")


def _latency(times: BatchTimes | None) -> str:
    if times is None or times.latency is None or times.latency_p90 is None:
        return MISSING
    return f"{times.latency:.2f} / {times.latency_p90:.2f}"


def batch_lines(panels: Sequence[GenerationPanel]) -> list[dict[str, object]]:
    """Return what ``batches.csv`` holds: full precision, a line for all that was timed and every batch."""
    return [
        {
            "task": panel.task,
            "backbone": panel.backbone,
            "label": point.label,
            "knob": "" if point.knob is None else point.knob,
            "layers": point.layers,
            "batch_size": batch.size,
            "in_flight": batch.in_flight,
            "tokens_per_second": times.tokens_per_second,
            "speedup": "" if times.speedup is None else times.speedup,
            "of_allowed": "" if times.of_allowed is None else times.of_allowed,
            "latency": "" if times.latency is None else times.latency,
            "latency_p90": "" if times.latency_p90 is None else times.latency_p90,
        }
        for panel in panels
        for point in timed_batches(panel)
        for batch, times in point.times.items()
    ]
