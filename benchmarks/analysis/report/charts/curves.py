"""Curves as a chart: a score over a cost, with choices of task, cost, score and methods."""

import json
from collections.abc import Mapping
from typing import Any

import altair as alt

from benchmarks.analysis.panels.results import ORACLE, role_of
from benchmarks.analysis.report.charts.curve_data import CurveData
from benchmarks.analysis.report.charts.curve_layers import curve_layers
from benchmarks.analysis.report.charts.looks import Legend, spec_of

CONTROLS, METHODS = "#curve-controls", "#curve-methods"
_DEPTHS = {3: "3", 6: "6", 12: "12", 1000: "all"}
_SCORE_TEXT = (
    "format(datum.score, '.1f') + '%' + (isValid(datum.low) ? ' [' + format(datum.low, '.1f') + ', ' + "
    "format(datum.high, '.1f') + ']' : '')"
)
_FLOPS_TEXT = "isValid(datum.x_flops) ? format(datum.x_flops, '.0f') + '%' : 'counted at the dots'"


def curves_chart(data: CurveData, legend: Legend) -> dict[str, Any]:
    """Return the specification of the chart. Curves that are not switched on are grey; an oracle is not drawn then."""
    switches = [
        alt.param(
            name=f"shown_{number}",
            value=label in legend.shown,
            bind=alt.binding_checkbox(name=label, element=METHODS),
        )
        for number, label in enumerate(legend.methods)
    ]
    names = ", ".join(one.name for one in switches)
    greyed = json.dumps([role_of(method) != ORACLE for method in legend.methods.values()])
    return spec_of(
        alt.layer(*curve_layers(data, legend), data=alt.Data(values=[data.columns]))
        .transform_flatten(list(data.columns))
        .transform_filter("datum.task == task && (datum.points == null || datum.points >= -depth)")
        .transform_calculate(
            x="datum['x_' + cost]",
            y="datum[measure]",
            y_low="measure == 'score' && isValid(datum.low) ? datum.low : datum[measure]",
            y_high="measure == 'score' && isValid(datum.high) ? datum.high : datum[measure]",
            method=f"datum.n < 0 ? 'full model' : {json.dumps(list(legend.methods))}[datum.n]",
            on=f"datum.n < 0 || [{names}][datum.n]",
            greyed=f"{greyed}[datum.n]",
            score_text=_SCORE_TEXT,
            flops_text=_FLOPS_TEXT,
            **{f"clock_{size}": _clock_text(size) for size in data.batch_sizes},
        )
        .transform_filter("isValid(datum.x) && isValid(datum.y) && (datum.on || others && datum.greyed)")
        .properties(width="container", height=400, title=alt.TitleParams(text=alt.expr("measure_words[measure]")))
        .add_params(*_choices(data), *switches)
    )


def _clock_text(size: int) -> str:
    milliseconds = f"(isValid(datum.ms_b{size}) ? format(datum.ms_b{size}, '.2f') + ' ms, ' : '')"
    return (
        f"isValid(datum.x_b{size}) ? {milliseconds} + format(100 / datum.x_b{size}, '.2f') + 'x' : 'timed at the dots'"
    )


def _choices(data: CurveData) -> list[alt.Parameter]:
    costs = {"layers": "layers", "flops": "FLOPs"} | {f"b{size}": f"clock, batch {size}" for size in data.batch_sizes}
    axes = {"layers": "layers run, % of the full model", "flops": "FLOPs, % of the full model"}
    axes |= {f"b{size}": f"time a {data.unit}, % of the full model, batch {size}" for size in data.batch_sizes}
    task = alt.binding_select(options=data.tasks, name="task", element=CONTROLS)
    others = alt.binding_checkbox(name="others in grey", element=CONTROLS)
    return [
        alt.param(name="task", value=data.tasks[0], bind=task),
        alt.param(name="measure", value=next(iter(data.measures)), bind=_menu("score", data.measures)),
        alt.param(name="cost", value="layers", bind=_buttons("cost", costs)),
        alt.param(name="depth", value=12, bind=_buttons("points below full", _DEPTHS)),
        alt.param(name="others", value=True, bind=others),
        alt.param(name="measure_words", value=dict(data.measures)),
        alt.param(name="cost_words", value=axes),
    ]


def _menu(name: str, options: Mapping[str, str]) -> alt.BindRadioSelect:
    return alt.binding_select(options=list(options), labels=list(options.values()), name=name, element=CONTROLS)


def _buttons(name: str, options: Mapping[Any, str]) -> alt.BindRadioSelect:
    return alt.binding_radio(options=list(options), labels=list(options.values()), name=name, element=CONTROLS)
