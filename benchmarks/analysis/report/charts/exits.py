"""Where rows exit, as a chart: methods against layers, at the knob for half of the layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from benchmarks.analysis.report.charts.looks import INK, LINE, methods_axis, spec_of
from benchmarks.analysis.report.contents.content import Exits

CONTROLS = "#exit-controls"
_ROOM_FOR_WORDS = 30
"""Pixels of a cell that has room for its share in words."""
_HEAT = "#2489d0"
"""Blue enough for white words on it, and light enough to stand on black."""


def exits_chart(tasks: Mapping[str, Sequence[Exits]]) -> dict[str, Any]:
    """Return the specification of the chart; ``tasks`` has at least one method of one task."""
    known = [task for task, exits in tasks.items() if exits]
    rows = [row for task in known for exits in tasks[task] for row in _rows(task, exits)]
    longest = max(len(tasks[task]) for task in known)
    methods = {exits.label: exits.method for task in known for exits in tasks[task]}
    choice = alt.param(
        name="exit_task", value=known[0], bind=alt.binding_select(options=known, name="task", element=CONTROLS)
    )
    y = methods_axis(methods, alt.EncodingSortField("layers", op="min"))
    x = alt.X("layer:O", title="exit layer", axis=alt.Axis(orient="top", labelAngle=0, ticks=False))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("layer:O", title="exit layer"),
        alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("layers:Q", format=".2f", title="layers, mean"),
    ]
    cells = (
        alt.Chart()
        .mark_rect(color=_HEAT)
        .encode(
            x=x,
            y=y,
            opacity=alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.06, 1]), legend=None),
            tooltip=tooltip,
        )
    )
    mean = alt.Chart().transform_filter("datum.layer == 1").mark_text(align="left", dx=10, color=INK, fontSize=12)
    deepest = max(row["layer"] for row in rows)
    parts = [
        cells,
        mean.encode(x=alt.value(alt.expr("width")), y=y, text=alt.Text("layers:Q", format=".1f")),
        _percentages(x, y, tooltip, deepest),
    ]
    return spec_of(
        alt.layer(*parts, data=alt.Data(values=rows))
        .transform_filter("datum.task == exit_task")
        .properties(width="container", height=LINE * longest, description="Exits by layer")
        .add_params(choice)
    )


def _percentages(x: alt.X, y: alt.Y, tooltip: Sequence[alt.Tooltip], deepest: int) -> alt.Chart:
    """Return the larger shares in words, on a page that is wide enough for them."""
    size = alt.expr(f"width < {_ROOM_FOR_WORDS * deepest} ? 0 : 11")
    return (
        alt.Chart()
        .transform_filter("datum.share >= 0.05")
        .mark_text(fontSize=size)
        .encode(
            x=x,
            y=y,
            text=alt.Text("share:Q", format=".0%"),
            color=alt.condition("datum.share > 0.55", alt.value("white"), alt.value(INK)),
            tooltip=list(tooltip),
        )
    )


def _rows(task: str, exits: Exits) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "method": exits.label,
            "layer": layer,
            "share": round(share, 4),
            "layers": round(exits.layers, 3),
        }
        for layer, share in enumerate(exits.shares, start=1)
    ]
