"""The HTML report: one file that needs no network, with Altair charts and sortable tables over the frames of results.

Words and axes of charts have the page's own ink (``currentColor``), so that they follow it from light to dark. Text
from data is escaped: in HTML by Jinja, in charts by Vega, which writes text nodes.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from itables import options
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.analysis.equal_cost import EqualCost, comparison_of, headline
from benchmarks.analysis.figures import COLOURS, exit_shares, half_points, leading_labels
from benchmarks.analysis.frames import MATCH, REFERENCES, STATIC, TASK, Results, is_core, role_of
from benchmarks.analysis.generation_tables import cost_table
from benchmarks.analysis.paper_tables import published_table
from benchmarks.analysis.provenance import caveats, provenance_table, records_frame
from benchmarks.analysis.rendering import STOCK, Column, Table
from benchmarks.analysis.tables import (
    contrast_table,
    further_tables,
    headline_table,
    knob_text,
    operating_points,
    task_names,
    task_table,
    write_text,
)

REPORT_FILE = "report.html"
INK, GREY = "currentColor", "#8b949e"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
LINE = 22
"""Pixels of a line of a chart that has a line for every method."""
_DENSE = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
_KEPT = "!$&'()*+,;=:@/?~-._{}[]|^ "
"""Characters that a data URI keeps inside of a script of JSON: base64 would make it a fifth larger."""
_LAST = -1e9
"""Unknown numbers are sorted below all others."""


def write_report(results: Results, folder: Path) -> Path:
    """Write ``report.html`` into a folder and return its path."""
    path = folder / REPORT_FILE
    write_text(path, render(results))
    return path


def render(results: Results) -> str:
    """Render the page."""
    templates = Environment(
        loader=PackageLoader("benchmarks.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    points, records = operating_points(results), records_frame(results)
    of_headline = headline_table(results)
    more = [contrast_table(results), cost_table(results) if results.kind == "generation" else None]
    more += [table for table in further_tables(results, points) if not table.name.startswith("points-")]
    more += [published_table(results, task) for task in results.tasks.index if results.kind == "classification"]
    facts = {
        "tasks": records["task"].nunique(),
        "methods": records["method"].nunique(),
        "backbones": ", ".join(sorted(records["backbone"].unique())),
        "records": len(records),
        "seeds": ", ".join(map(str, sorted(records["seed"].unique()))),
        "last record": records["finished"].max()[:10],
    }
    warnings: dict[str, list[str]] = {}
    for subject, text in caveats(results):
        warnings.setdefault(subject, []).append(text)
    return templates.get_template("report.html").render(
        name=results.folder.resolve().name,
        facts=facts,
        best=_best(results),
        headline=_shown(results, of_headline) if of_headline else None,
        by_task=_shown(results, table) if (table := task_table(results)) else None,
        charts={name: spec for name, spec in _charts(results, points).items() if spec is not None},
        points=_shown(results, _points_table(results, points)),
        more=[_shown(results, table) for table in more if table is not None],
        warnings=warnings,
        machines=_shown(results, provenance_table(results)),
        provenance=_shown(results, _records_table(records)),
        vega=_vega(),
        datatables=_datatables(),
    )


@cache
def _vega() -> str:
    """Return the script of Vega, Vega-Lite and Vega-Embed, of the version that charts are written for."""
    version = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=version)
    return str(script).replace("</script", "<\\/script")


@cache
def _datatables() -> str:
    """Return the module of DataTables as a data URI."""
    module = Path(str(options.dt_bundle)).read_text(encoding="utf-8")
    return f"data:text/javascript;charset=utf-8,{quote(module, safe=_KEPT)}"


# ---------------------------------------------------------------------------------------------- tables


def _shown(results: Results, table: Table) -> dict[str, Any]:
    """Return a table as the template shows it: every cell is a text and the number that it is sorted by."""
    cells, lines = table.cells, table.frame.to_dict("records")
    by_heading = {column.heading: column for column in table.columns}
    orders = [[_order(by_heading[str(heading)], line) for heading in cells] for line in lines]
    texts = cells.to_numpy().tolist()
    return {
        "name": table.name,
        "title": table.title,
        "headings": [str(heading) for heading in cells],
        "words": table.words,
        "rows": [list(zip(row, order, strict=True)) for row, order in zip(texts, orders, strict=True)],
        "notes": table.notes,
        "core": [is_core(results.methods.get(str(line.get(table.labels)), "")) for line in lines],
    }


def _order(column: Column, line: dict[str, Any]) -> float | None:
    if not column.form:
        return None
    value = column.value(line) if callable(column.value) else line.get(column.value)
    return _LAST if value is None or pd.isna(value) else round(float(str(value)), 4)


def _points_table(results: Results, points: pd.DataFrame) -> Table:
    """Return every operating point of every task."""
    names = task_names(results.tasks.index)
    frame = points.rename(columns={"label": "method", "method": "implementation"})
    frame["task"] = [names[task] for task in zip(frame["task"], frame["backbone"], strict=True)]
    frame["shown_knob"] = [knob_text(line) for line in points.to_dict("records")]
    percent = ["score", "score_low", "score_high", "saved", MATCH]
    frame[[name for name in percent if name in frame]] *= 100
    sizes, unit = results.batch_sizes, "tokens/s" if results.kind == "generation" else "ms"
    clock = "tokens_per_second" if results.kind == "generation" else "ms"
    return Table(
        title=f"{len(frame)} operating points",
        name="points",
        frame=frame,
        columns=[
            Column("method", "method"),
            Column("task", "task"),
            Column("score % [95%]", "score", ".1f", "score_low", "score_high"),
            Column("tokens as in full, %", MATCH, ".1f"),
            Column("layers", "layers", ".2f"),
            Column("saved %", "saved", ".0f"),
            Column("FLOPs", "flops_ratio", ".2f"),
            *(Column(f"{unit}, batch {size}", f"{clock}_b{size}", ".2f") for size in sizes),
            *(Column(f"clock, batch {size}", f"speedup_b{size}", ".2f") for size in sizes),
            Column("chosen for", "short"),
            Column("knob", "shown_knob"),
        ],
        notes=[
            "Knobs are chosen on validation data and reported on test rows: the best within a share of the layers "
            "(≤50%), "
            "the fewest layers within a point of the full model (-1 pt), or with so many answers of the full "
            "model's (as "
            "full). Score: the task's metric. Saved: 1 - layers / L. FLOPs and clock: full model / method."
        ],
    )


def _records_table(records: pd.DataFrame) -> Table:
    words = ("task", "backbone", "method", "parameters", "seed", "finished", "commit", "key", "command")
    return Table(
        title=f"{len(records)} records: keys, commits, commands",
        name="records",
        frame=records,
        columns=[*(Column(name, name) for name in words), Column("train s", "train_seconds", ".0f")],
        notes=["Keys are hashes of what a result depends on, see docs/versions.md; here their first 12 characters."],
    )


def _best(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the two best methods at every budget."""
    found = headline(results).dropna(subset=["points"]).sort_values("points", ascending=False, kind="stable")
    return {f"{s:g}x": found[found["budget"] == s].head(2).to_dict("records") for s in results.speedups if len(found)}


# ---------------------------------------------------------------------------------------------- charts


def _charts(results: Results, points: pd.DataFrame) -> dict[str, dict[str, Any] | None]:
    return {
        "#headline-chart": _headline_chart(results),
        "#curves-chart": _curves_chart(results, points),
        "#exits-chart": _exits_chart(results),
    }


def _headline_chart(results: Results) -> dict[str, Any] | None:
    """Draw points at every budget, one line a method, the best at the chosen budget on top."""
    found = headline(results).dropna(subset=["points"])
    if found.empty:
        return None
    budgets = [f"{speedup:g}x" for speedup in results.speedups]
    columns = ["method", "points", "low", "high", "layers"]
    frame = found[columns].round(3).assign(budget=found["budget"].map("{:g}x".format))
    over = found["over"].map({True: "†", False: ""})
    frame["short"] = frame["points"].map("{:+.1f}".format) + over
    frame["text"] = [
        short if np.isnan(low) else f"{short} [{low:+.1f}, {high:+.1f}]"
        for short, low, high in zip(frame["short"], frame["low"], frame["high"], strict=True)
    ]
    chosen = alt.param(
        name="budget",
        value=budgets[len(budgets) // 2],
        bind=alt.binding_radio(options=budgets, name="speed-up in layers", element="#headline-controls"),
    )
    methods = list(dict.fromkeys(frame["method"]))
    order = alt.EncodingSortField("chosen", op="max", order="descending")
    y = _methods_axis(results, order, grid=False)
    axis = alt.Axis(labelExpr="datum.value == 0 ? '0' : format(datum.value, '+~f')", orient="top", tickMinStep=1)
    x = alt.X("points:Q", title="points against the full model", axis=axis)
    tooltip = ["method:N", "budget:N", alt.Tooltip("text:N", title="points"), alt.Tooltip("layers:Q", format=".2f")]
    colours = [COLOURS[0] if is_core(results.methods[label]) else GREY for label in methods]
    colour = alt.Color("method:N", scale=alt.Scale(domain=methods, range=colours), legend=None)
    at_budget = "datum.budget == budget"
    here, base = alt.Chart().transform_filter(at_budget), alt.Chart()
    layers = [
        alt.Chart(alt.Data(values=[{}])).mark_rule(color=INK, opacity=0.5).encode(x=alt.datum(0)),
        base.mark_rule(color=INK, opacity=0.25).encode(y=y, x="min(points):Q", x2="max(points):Q"),
        base.transform_filter("datum.budget != budget")
        .mark_point(filled=True, size=36, opacity=0.45)
        .encode(x=x, y=y, color=colour, tooltip=tooltip),
        here.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2.5, opacity=0.6)
        .encode(x="low:Q", x2="high:Q", y=y, color=colour),
        here.mark_point(filled=True, size=130, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip),
        here.mark_text(align="left", dx=10, color=INK).encode(x=alt.value(alt.expr("width")), y=y, text="short:N"),
    ]
    return _spec(
        alt.layer(*layers, data=_data(frame))
        .transform_calculate(now=f"{at_budget} ? datum.points : null")
        .transform_joinaggregate(chosen="max(now)", groupby=["method"])
        .properties(width="container", height=LINE * len(methods), description="Points at equal cost")
        .add_params(chosen)
    )


def _curves_chart(results: Results, points: pd.DataFrame) -> dict[str, Any]:
    """Draw curves of mixtures at equal cost and dots of operating points, with choices of task, score and cost."""
    frame, measures = _curve_data(results, points)
    tasks = list(dict.fromkeys(frame["task"]))
    sizes = results.batch_sizes
    costs = {"layers": "layers", "flops": "FLOPs"} | {f"b{size}": f"clock, batch {size}" for size in sizes}
    # Only labels that are drawn; the strongest ones come first and are in colour.
    drawn = set(frame["method"])
    labels = [x for x in _by_strength(results) if x in drawn]
    shown = [x for x in labels if x in leading_labels(results) or role_of(results.methods[x]) == STATIC]
    of_colour = [x for x in labels if role_of(results.methods[x]) not in REFERENCES]
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(of_colour)}
    controls = "#curve-controls"

    def choice(name: str, title: str, values: dict[Any, str], *, menu: bool = False) -> alt.Parameter:
        binding = alt.binding_select if menu else alt.binding_radio
        bound = binding(options=list(values), labels=list(values.values()), name=title, element=controls)
        return alt.param(name=name, value=next(iter(values)), bind=bound)

    legend = alt.selection_point(
        name="shown", fields=["method"], bind="legend", toggle="true", value=[{"method": label} for label in shown]
    )
    hover = alt.selection_point(name="hover", on="pointerover", nearest=True, fields=["method"], empty=False)
    percent = alt.Axis(labelExpr="datum.label + '%'", tickCount=6, grid=False)
    x = alt.X("x:Q", title=None, axis=percent, scale=alt.Scale(zero=True))
    y = alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=False))
    colour = alt.Color(
        "method:N",
        scale=alt.Scale(domain=labels, range=[colours.get(label, GREY) for label in labels]),
        legend=alt.Legend(title="click to show or hide", symbolLimit=0, columns=1, labelLimit=260),
    )
    opacity = alt.when(hover).then(alt.value(1)).when(legend).then(alt.value(0.9)).otherwise(alt.value(0.08))
    width = alt.when(hover).then(alt.value(3.5)).otherwise(alt.value(1.6))
    curves, dots = (alt.Chart().transform_filter(f"datum.kind == '{kind}'") for kind in ("curve", "point"))
    tooltip = _tooltip_of_nearest(measures, sizes)
    words = {"layers": "layers run", "flops": "FLOPs"} | {f"b{size}": f"time, batch {size}" for size in sizes}
    title = alt.Chart(alt.Data(values=[{}])).mark_text(text=alt.expr("cost_words[cost]"), baseline="top", color=INK)
    interval = dots.transform_filter("measure == 'score' && isValid(datum.low)").mark_rule(strokeWidth=1.2)
    layers = [
        alt.Chart(alt.Data(values=[{"zero": 0}]))
        .transform_filter("measure == 'points'")
        .mark_rule(color=INK)
        .encode(y="zero:Q"),
        interval.encode(x=x, y="low:Q", y2="high:Q", color=colour, opacity=opacity),
        curves.mark_line().encode(x=x, y=y, color=colour, opacity=opacity, strokeWidth=width).add_params(legend),
        dots.mark_point(filled=True, size=40).encode(x=x, y=y, color=colour, opacity=opacity),
        alt.Chart().mark_point(size=60, opacity=0).encode(x=x, y=y, tooltip=tooltip).add_params(hover),
        title.encode(x=alt.value(alt.expr("width / 2")), y=alt.value(alt.expr("height + 26"))),
    ]
    return _spec(
        alt.layer(*layers, data=alt.Data(values=[_columns(frame)]))
        .transform_flatten(list(frame))
        .transform_calculate(x="datum['x_' + cost]", y="datum[measure]")
        .transform_filter("datum.task == task && (datum.points == null || datum.points >= -depth)")
        .transform_filter("isValid(datum.x) && isValid(datum.y)")
        .properties(width="container", height=400, title=alt.TitleParams(text=alt.expr("measure_words[measure]")))
        .add_params(
            choice("task", "task", {task: task for task in tasks}, menu=True),
            choice("measure", "score", measures, menu=True),
            choice("cost", "cost", costs),
            choice("depth", "points below full", {12: "12", 3: "3", 6: "6", 1000: "all"}),
            alt.param(name="measure_words", value=measures),
            alt.param(name="cost_words", value={name: f"{text}, % of the full model" for name, text in words.items()}),
        )
    )


def _tooltip_of_nearest(measures: Mapping[str, str], sizes: Sequence[int]) -> Any:
    """Build the tooltip of the invisible points that the pointer finds.

    The pointer meets a Voronoi cell, and the point is the datum of its datum.
    """
    costs = {"FLOPs, % of full": "x_flops"} | {f"clock, batch {size}, % of full": f"x_b{size}" for size in sizes}
    entries = {
        "method": "datum.datum.method",
        "knob": "datum.datum.knob",
        **({"points against full": "format(datum.datum.points, '+.1f')"} if "points" in measures else {}),
        "score": "datum.datum.score_text",
        **({"tokens as in full, %": "format(datum.datum.match, '.1f')"} if "match" in measures else {}),
        "layers": "format(datum.datum.layers, '.2f')",
        **{
            title: f"isValid(datum.datum.{name}) ? format(datum.datum.{name}, '.0f') : 'n/a'"
            for title, name in costs.items()
        },
    }
    lines = ", ".join(f"'{name}': {value}" for name, value in entries.items())
    return alt.value(alt.expr(f"datum.datum ? {{{lines}}} : null"))


def _by_strength(results: Results) -> list[str]:
    ranked = list(dict.fromkeys(headline(results)["method"]))
    return [*ranked, *(label for label in results.labels_to_compare if label not in ranked)]


def _curve_data(results: Results, points: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the points of the chart of curves and the scores that can be chosen.

    Columns: ``task``, ``method``, ``kind`` (curve: a mixture at equal cost; point: an operating point), ``knob``, costs
    in percent of the full model's (``x_layers``, ``x_flops``, ``x_b1``, ...), ``layers``, ``points``, ``score``,
    ``low``, ``high`` and ``match``.
    """
    names = task_names(results.tasks.index)
    full = results.full_scores()
    mixed = EqualCost(results, _DENSE).by_task()
    mixed = mixed[mixed["label"].isin(results.labels_to_compare) & ~mixed["over"]]
    mixed = mixed.assign(kind="curve", knob="mixed to " + mixed["speedup"].map("{:g}x".format))
    dots = points[points["label"].isin(results.labels_to_compare)].copy()
    reference = [full.get((*task, -1), np.nan) for task in zip(dots["task"], dots["backbone"], strict=True)]
    seeds = [
        [full.get((task, backbone, int(seed)), np.nan) for seed in text.split()]
        for task, backbone, text in zip(dots["task"], dots["backbone"], dots["seeds"], strict=True)
    ]
    own = [
        float(np.mean(of)) if of and not np.isnan(of).any() else mean for of, mean in zip(seeds, reference, strict=True)
    ]
    dots = dots.assign(
        kind="point", points=dots["score"] - own, knob=[knob_text(line) for line in dots.to_dict("records")]
    )
    dots = dots.rename(columns={"score_low": "low", "score_high": "high", MATCH: "match"})
    both = pd.concat([mixed, dots], ignore_index=True)
    layers = results.tasks["num_layers"].loc[pd.MultiIndex.from_frame(both[TASK])].to_numpy()
    frame = both[["label", "kind", "knob", "layers"]].rename(columns={"label": "method"})
    frame.insert(0, "task", [names[task] for task in zip(both["task"], both["backbone"], strict=True)])
    frame["x_layers"] = 100 * both["layers"] / layers
    for name in [name for name in both if str(name).startswith(("flops_ratio", "speedup_b"))]:
        frame[str(name).replace("flops_ratio", "x_flops").replace("speedup_", "x_")] = 100 / both[name].astype(float)
    for name in ("points", "score", "low", "high", "match"):
        frame[name] = 100 * both[name] if name in both else np.nan
    tasks = [names[task] for task in comparison_of(results).compared]
    if len(tasks) > 1:
        of_tasks = frame[frame["task"].isin(tasks) & (frame["kind"] == "curve")]
        groups = of_tasks.groupby(["method", "knob"], sort=False)
        means = groups.mean(numeric_only=True)[groups.size() == len(tasks)].reset_index()
        frame = pd.concat([means.assign(task=f"mean of {len(tasks)} tasks", kind="curve"), frame], ignore_index=True)
    known = ~frame["low"].isna()
    frame["score_text"] = frame["score"].map("{:.1f}%".format)
    frame.loc[known, "score_text"] += [f" [{a:.1f}, {b:.1f}]" for a, b in frame.loc[known, ["low", "high"]].to_numpy()]
    measures = {
        "points": "points against the full model",
        "score": "score, %",
        "match": "tokens as in the full model, %",
    }
    return frame.round(3), {name: text for name, text in measures.items() if frame[name].notna().any()}


def _exits_chart(results: Results) -> dict[str, Any] | None:
    """Draw the share of rows that exit at each layer, at the knob for half of the layers."""
    found = half_points(results)
    found = found[found["label"].isin(results.labels_to_compare) & (found["label"] != STOCK)]
    names = task_names(results.tasks.index)
    lines = [
        {
            "task": names[line["task"], line["backbone"]],
            "method": line["label"],
            "layer": layer,
            "share": round(share, 4),
        }
        | {"layers": round(line["layers"], 3)}
        for line in found.to_dict("records")
        for layer, share in enumerate(exit_shares(results, line["chosen"]).tolist(), start=1)
    ]
    if not lines:
        return None
    frame = pd.DataFrame(lines)
    tasks = list(dict.fromkeys(frame["task"]))
    select = alt.binding_select(options=tasks, name="task", element="#exit-controls")
    choice = alt.param(name="exit_task", value=tasks[0], bind=select)
    y = _methods_axis(results, alt.EncodingSortField("layers", op="min"))
    x = alt.X("layer:O", title="exit layer", axis=alt.Axis(orient="top", labelAngle=0, ticks=False))
    tooltip = [
        *("method:N", alt.Tooltip("layer:O", title="exit layer"), alt.Tooltip("share:Q", format=".1%")),
        alt.Tooltip("layers:Q", format=".2f", title="layers, mean"),
    ]
    shade = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.06, 1]), legend=None)
    cells = alt.Chart().mark_rect(color="#2489d0").encode(x=x, y=y, opacity=shade, tooltip=tooltip)
    mean = alt.Chart().transform_filter("datum.layer == 1").mark_text(align="left", dx=10, color=INK)
    size = alt.expr(f"width < {30 * frame['layer'].max()} ? 0 : 11")
    words = alt.Chart().transform_filter("datum.share >= 0.05").mark_text(fontSize=size)
    ink = alt.condition("datum.share > 0.55", alt.value("white"), alt.value(INK))
    layers = [
        cells,
        mean.encode(x=alt.value(alt.expr("width")), y=y, text=alt.Text("layers:Q", format=".1f")),
        words.encode(x=x, y=y, text=alt.Text("share:Q", format=".0%"), color=ink, tooltip=tooltip),
    ]
    return _spec(
        alt.layer(*layers, data=_data(frame))
        .transform_filter("datum.task == exit_task")
        .properties(
            width="container",
            height=LINE * frame.groupby("task")["method"].nunique().max(),
            description="Exits by layer",
        )
        .add_params(choice)
    )


def _methods_axis(results: Results, sort: alt.EncodingSortField, **axis: Any) -> alt.Y:
    """Return the axis that has a line for every method, ConsistentEE and its variants in bold."""
    core = [label for label, method in results.methods.items() if is_core(method)]
    test = f"indexof({core!r}, datum.value) >= 0"
    bold = {"condition": {"test": test, "value": "bold"}, "value": "normal"}
    return alt.Y(
        "method:N", title=None, sort=sort, axis=alt.Axis(labelFontWeight=bold, ticks=False, labelPadding=8, **axis)
    )


def _data(frame: pd.DataFrame) -> alt.Data:
    lines: Sequence[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return alt.Data(values=[{name: value for name, value in line.items() if value is not None} for line in lines])


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a frame as columns of one datum, a third of the size of as many data."""
    return {str(name): frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame}


def _spec(chart: Any) -> dict[str, Any]:
    """Return a chart's specification, with the fonts, the ink and the background of the page."""
    words = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    lines = {"domain": False, "tickColor": INK, "tickOpacity": 0.3, "gridColor": INK, "gridOpacity": 0.12}
    title = {"color": INK, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "offset": 10}
    styled = chart.configure(background="transparent", font=FONT, padding=4).configure_view(stroke=None)
    styled = styled.configure_axis(**words, **lines, labelLimit=190, labelSeparation=8, titleFontWeight="normal")
    styled = styled.configure_legend(labelColor=INK, titleColor=INK, titleFontWeight="normal", labelFontSize=12)
    return dict(styled.configure_title(**title).to_dict(validate=False))
