"""The headline as a chart: points lost at every budget, one line a method, the best at the chosen budget on top."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.report.charts.looks import GREY, INK, LINE, Look, methods_axis, spec_of
from benchmarks.analysis.report.contents.content import Headline, Standing

CONTROLS = "#headline-controls"
_POINTS = alt.Axis(labelExpr="datum.value == 0 ? '0' : format(datum.value, '+~f')", orient="top", tickMinStep=1)


def headline_chart(headline: Headline, looks: Mapping[str, Look]) -> dict[str, Any]:
    """Return the specification of the chart; ``looks`` are those of the page."""
    budgets = list(dict.fromkeys(one.budget for one in headline.standings))
    methods = {one.label: one.method for one in headline.standings}
    chosen = alt.param(
        name="budget",
        value=budgets[len(budgets) // 2],
        bind=alt.binding_radio(options=budgets, name=headline.budgets, element=CONTROLS),
    )
    y = methods_axis(methods, alt.EncodingSortField("chosen", op="max", order="descending"), grid=False)
    x = alt.X("points:Q", title=f"points against {headline.against}", axis=_POINTS)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("budget:N"),
        alt.Tooltip("text:N", title="points"),
        alt.Tooltip("layers:Q", format=".2f", title="layers, mean"),
    ]
    at_budget, elsewhere = "datum.budget == budget", "datum.budget != budget"
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color=INK, opacity=0.5).encode(x=alt.datum(0))
    span = alt.Chart().mark_rule(color=INK, opacity=0.25).encode(y=y, x=alt.X("min(points):Q"), x2="max(points):Q")
    others = alt.Chart().transform_filter(elsewhere).mark_point(filled=True, size=36, opacity=0.45)
    interval = (
        alt.Chart().transform_filter(f"{at_budget} && isValid(datum.low)").mark_rule(strokeWidth=2.5, opacity=0.6)
    )
    point = alt.Chart().transform_filter(at_budget).mark_point(filled=True, size=130, opacity=1)
    value = alt.Chart().transform_filter(at_budget).mark_text(align="left", dx=10, color=INK, fontSize=12)
    colour = _colours(methods, looks)
    return spec_of(
        alt.layer(
            zero,
            span,
            others.encode(x=x, y=y, color=colour, tooltip=tooltip),
            interval.encode(x="low:Q", x2="high:Q", y=y, color=colour),
            point.encode(x=x, y=y, color=colour, tooltip=tooltip),
            value.encode(x=alt.value(alt.expr("width")), y=y, text="short:N"),
            data=alt.Data(values=[_values(one) for one in headline.standings]),
        )
        .transform_calculate(now=f"{at_budget} ? datum.points : null")
        .transform_joinaggregate(chosen="max(now)", groupby=["method"])
        .properties(width="container", height=LINE * len(methods), description=headline.title)
        .add_params(chosen)
    )


def _values(standing: Standing) -> dict[str, str | float | None]:
    short = f"{standing.points:+.1f}{standing.marks}"
    low, high = standing.interval or (None, None)
    return {
        "method": standing.label,
        "budget": standing.budget,
        "points": round(standing.points, 3),
        "low": low,
        "high": high,
        "short": short,
        "text": short if low is None else f"{short} [{low:+.1f}, {high:+.1f}]",
        "layers": round(standing.layers, 3),
    }


def _colours(methods: Mapping[str, str], looks: Mapping[str, Look]) -> alt.Color:
    """Colour ConsistentEE and its variants alone: here names stand beside the lines."""
    colours = [looks[label].colour if is_core(method) else GREY for label, method in methods.items()]
    return alt.Color("method:N", scale=alt.Scale(domain=list(methods), range=colours), legend=None)
