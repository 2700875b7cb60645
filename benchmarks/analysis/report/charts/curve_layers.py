"""What is drawn of curves, from back to front: the full model, grey lines, intervals, lines, dots, what is hovered."""

import altair as alt

from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.report.charts.curve_data import CurveData
from benchmarks.analysis.report.charts.looks import INK, Legend

_STAR = "M0,-1L0.24,-0.31L0.95,-0.31L0.38,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.38,0.12L-0.95,-0.31L-0.24,-0.31Z"
_IS_FULL = "datum.n < 0"


def _is_on(column: str) -> str:
    """Return the test of a point that is on a line, or is marked by a dot, where the chosen cost is the axis."""
    return f"!({_IS_FULL}) && (datum.{column} == 'all' || datum.{column} == (cost == 'layers' ? 'layers' : 'other'))"


def curve_layers(data: CurveData, legend: Legend) -> list[alt.Chart]:
    """Return the layers of the chart of curves."""
    percent = alt.Axis(labelExpr="datum.label + '%'", tickCount=6, grid=False)
    x = alt.X("x:Q", title=None, axis=percent, scale=alt.Scale(zero=True))
    y = alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=False))
    hover = alt.selection_point(
        name="hover", on="pointerover", clear="pointerout", nearest=True, fields=["method"], empty=False
    )
    return [
        *_full(x, y),
        _grey_lines(x, y, hover),
        *_lines_and_dots(x, y, hover, legend),
        _nearest(x, y, data).add_params(hover),
        _title_of_x(),
    ]


def _full(x: alt.X, y: alt.Y) -> list[alt.Chart]:
    full = alt.Chart().transform_filter(_IS_FULL)
    star = full.mark_point(shape=_STAR, filled=True, size=130, color=INK, opacity=1)
    return [full.mark_rule(color=INK, opacity=0.45).encode(y=y), star.encode(x=x, y=y)]


def _grey_lines(x: alt.X, y: alt.Y, hover: alt.Parameter) -> alt.Chart:
    shade = alt.when(hover).then(alt.value(0.8)).otherwise(alt.value(0.22))
    off = alt.Chart().transform_filter(f"!datum.on && {_is_on('line')}")
    return off.mark_line(color=INK, strokeWidth=1).encode(x=x, y=y, detail="method:N", opacity=shade)


def _lines_and_dots(x: alt.X, y: alt.Y, hover: alt.Parameter, legend: Legend) -> list[alt.Chart]:
    labels, looks = list(legend.methods), [legend.looks[label] for label in legend.methods]
    core = [label for label, method in legend.methods.items() if is_core(method)]
    colours = alt.Scale(domain=labels, range=[look.colour for look in looks])
    dashes = alt.Scale(domain=labels, range=[look.dash for look in looks])
    shapes = alt.Scale(domain=labels, range=[look.shape for look in looks])
    colour = alt.Color("method:N", legend=None, scale=colours)
    width = (
        alt.when(hover)
        .then(alt.value(4))
        .when(alt.FieldOneOfPredicate("method", core))
        .then(alt.value(3))
        .otherwise(alt.value(1.6))
    )
    lines = alt.Chart().transform_filter(f"datum.on && {_is_on('line')}")
    dots = alt.Chart().transform_filter(f"datum.on && {_is_on('dot')}")
    dash = alt.StrokeDash("method:N", legend=None, scale=dashes)
    shape = alt.Shape("method:N", legend=None, scale=shapes)
    return [
        dots.mark_rule(opacity=0.5).encode(x=x, y=alt.Y("y_low:Q"), y2="y_high:Q", color=colour),
        lines.mark_line().encode(x=x, y=y, color=colour, strokeDash=dash, strokeWidth=width),
        dots.mark_point(filled=True, size=42, opacity=1).encode(x=x, y=y, color=colour, shape=shape),
    ]


def _nearest(x: alt.X, y: alt.Y, data: CurveData) -> alt.Chart:
    """Return the points, unseen, that the pointer finds: what it meets is a cell around a point, whose datum it is."""
    points = alt.Chart(name="nearest").transform_filter(f"{_IS_FULL} || {_is_on('line')} || {_is_on('dot')}")
    said = {
        "method": "datum.datum.method",
        "knob": "datum.datum.knob",
        **({"points against full": "format(datum.datum.points, '+.1f')"} if "points" in data.measures else {}),
        "score": "datum.datum.score_text",
        **({"tokens as in full": "format(datum.datum.match, '.1f') + '%'"} if "match" in data.measures else {}),
        "layers": "format(datum.datum.layers, '.2f')",
        "FLOPs of full": "datum.datum.flops_text",
        **{f"clock, batch {size}": f"datum.datum.clock_{size}" for size in data.batch_sizes},
    }
    lines = ", ".join(f"'{name}': {value}" for name, value in said.items())
    tooltip = alt.value(alt.expr(f"datum.datum ? {{{lines}}} : null"))
    return points.mark_point(size=60, opacity=0).encode(x=x, y=y, tooltip=tooltip)


def _title_of_x() -> alt.Chart:
    """Return the title of the axis, which no axis can change by itself."""
    title = alt.Chart(alt.Data(values=[{}])).mark_text(text=alt.expr("cost_words[cost]"), baseline="top", color=INK)
    return title.encode(x=alt.value(alt.expr("width / 2")), y=alt.value(alt.expr("height + 26")), size=alt.value(12))
