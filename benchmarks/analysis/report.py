"""The HTML report: one file that needs no network, with figures, Altair charts and sortable tables of results.

Words and axes of charts have the page's own ink (``currentColor``), so that they follow it from light to dark. Text
from data is escaped: in HTML by Jinja, in charts by Vega, which writes text nodes. Charts are built without their
data, which is put into the finished specification: Altair copies and checks all that it is given, many times over.
"""

import importlib.metadata
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import altair as alt
import pandas as pd
import vl_convert
from itables import options
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.analysis.figures import COLOURS, dense_curves, leading_labels, ranked_labels, write_figures
from benchmarks.analysis.frames import REFERENCES, STATIC, Results, role_of
from benchmarks.analysis.provenance import caveats, provenance_table
from benchmarks.analysis.rendering import Column, Table
from benchmarks.analysis.tables import point_table, tables_of
from benchmarks.store.hashes import write_text
from consistentee.backbones.wheels import cache_dir

REPORT_FILE = "report.html"
INK, GREY = "currentColor", "#8b949e"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_NOT_KEPT = re.compile(r"[^\w!$&'()*+,;=:@/?~.{}\[\]|^ -]+", re.ASCII)
"""Characters that a data URI does not keep inside of a script of JSON: base64 would make it a fifth larger."""
_ROWS = alt.NamedData("rows")
"""Stands for a chart's data until :func:`_spec` writes them."""
_LAST = -1e9
"""Unknown numbers are sorted below all others."""
DEEPEST = 12
"""Points below the full model down to which curves are drawn."""
_MEASURES = {"points": "points against the full model", "score": "score, %"}


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
    tables = {table.name: _shown(table) for table in tables_of(results)}
    with alt.utils.schemapi.debug_mode(False):  # without checks by a schema, which take half a second
        curves = _curves_chart(results)
    datatables = Path(str(options.dt_bundle)).read_text(encoding="utf-8")
    warnings: dict[str, list[str]] = {}
    for subject, text in caveats(results):
        warnings.setdefault(subject, []).append(text)
    return templates.get_template("report.html").render(
        name=results.folder.resolve().name,
        headline=tables.pop("headline", None),
        by_task=tables.pop("scores", None),
        pictures={name: _picture(name, results) for name in ("equal-cost", "exits")},
        charts={} if curves is None else {"#curves-chart": curves},
        points=_shown(point_table(results)),
        more=list(tables.values()),
        warnings=warnings,
        machines=_shown(provenance_table(results)),
        vega=_vega(),
        datatables="data:text/javascript;charset=utf-8," + _NOT_KEPT.sub(lambda text: quote(text[0]), datatables),
    )


def _picture(name: str, results: Results) -> dict[str, str] | None:
    with TemporaryDirectory() as folder:
        for path in write_figures(results, Path(folder), [name])[0]:
            uri = f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
            return {"uri": uri, "caption": path.with_suffix(".txt").read_text(encoding="utf-8")}
    return None


def _vega() -> str:
    """Return the script of Vega, Vega-Lite and Vega-Embed, of the version that charts are written for.

    Bundling takes seconds: the script is kept in the cache.
    """
    version = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    version_of_converter = importlib.metadata.version("vl-convert-python")
    path = cache_dir() / "scripts" / f"vega-lite-{version}-by-{version_of_converter}.js"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=version)
        write_text(path, str(script).replace("</script", "<\\/script"))
    return path.read_text(encoding="utf-8")


def _shown(table: Table) -> dict[str, Any]:
    """Return a table as the template shows it: every cell is a text and the number that it is sorted by."""
    cells = table.cells
    columns = [column for column in table.columns if column.heading in cells]
    by_column = [zip(cells[column.heading], _orders(column, table.frame), strict=True) for column in columns]
    return {
        "name": table.name,
        "title": table.title,
        "headings": [column.heading for column in columns],
        "words": table.words,
        "rows": list(zip(*by_column, strict=True)),
        "notes": table.all_notes,
    }


def _orders(column: Column, frame: pd.DataFrame) -> list[float | None]:
    if not column.form:
        return [None] * len(frame)
    return [_LAST if pd.isna(value) else round(float(value), 4) for value in frame.get(column.source, ())]


def _curves_chart(results: Results) -> dict[str, Any] | None:
    """Draw curves at equal cost, with choices of task, score and cost; None if there is nothing to draw."""
    found = dense_curves(results)
    found = found[~(100 * found["points"] < -DEEPEST)]
    if found.empty:
        return None
    frame = pd.DataFrame({"task": found["panel"], "method": found["label"], "at": found["speedup"].map("{:g}x".format)})
    frame = frame.assign(points=100 * found["points"], score=100 * found["score"])
    frame = frame.join(found.filter(like="x_")).round(3)  # costs in percent: x_layers, x_flops, x_b1, ...
    measures = {name: text for name, text in _MEASURES.items() if frame[name].notna().any()}
    clocks = {f"b{size}": f"clock, batch {size}" for size in results.batch_sizes}
    costs = {"layers": "layers", "flops": "FLOPs"} | clocks
    # Only labels that are drawn; the strongest ones come first and are in colour.
    drawn = set(frame["method"])
    labels = [label for label in ranked_labels(results) if label in drawn]
    shown = [x for x in labels if x in leading_labels(results) or role_of(results.methods[x]) == STATIC]
    of_colour = [x for x in labels if role_of(results.methods[x]) not in REFERENCES]
    colours = {label: list(COLOURS)[place % len(COLOURS)] for place, label in enumerate(of_colour)}

    def choice(name: str, title: str, values: Mapping[str, str], *, menu: bool = True) -> alt.Parameter:
        binding = alt.binding_select if menu else alt.binding_radio
        bound = binding(options=list(values), labels=list(values.values()), name=title, element="#curve-controls")
        return alt.param(name=name, value=next(iter(values)), bind=bound)

    legend = alt.selection_point(
        name="shown", fields=["method"], bind="legend", toggle="true", value=[{"method": label} for label in shown]
    )
    hover = alt.selection_point(name="hover", on="pointerover", fields=["method"], empty=False)
    x = alt.X("x:Q", title=None, axis=alt.Axis(labelExpr="datum.label + '%'", tickCount=6, grid=False))
    y = alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=False))
    colour = alt.Color(
        "method:N",
        scale=alt.Scale(domain=labels, range=[colours.get(label, GREY) for label in labels]),
        legend=alt.Legend(title="click to show or hide", symbolLimit=0, columns=1, labelLimit=260),
    )
    opacity = alt.when(hover).then(alt.value(1)).when(legend).then(alt.value(0.9)).otherwise(alt.value(0.08))
    width = alt.when(hover).then(alt.value(3.5)).otherwise(alt.value(1.6))
    tooltip = ["method:N", "at:N", alt.Tooltip("points:Q", format="+.1f"), alt.Tooltip("score:Q", format=".1f")]
    tooltip += [alt.Tooltip(f"x_{name}:Q", title=f"{text}, % of full", format=".0f") for name, text in costs.items()]
    everything = alt.Chart().encode(x=x, y=y, color=colour, opacity=opacity)
    title = alt.Chart(alt.Data(values=[{}])).mark_text(text=alt.expr("cost_words[cost]"), baseline="top", color=INK)
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).transform_filter("measure == 'points'")
    layers = [
        zero.mark_rule(color=INK).encode(y="zero:Q"),
        everything.mark_line().encode(strokeWidth=width).add_params(legend),
        everything.mark_point(filled=True, size=30).encode(tooltip=tooltip).add_params(hover),
        title.encode(x=alt.value(alt.expr("width / 2")), y=alt.value(alt.expr("height + 26"))),
    ]
    chart = (
        alt.layer(*layers, data=_ROWS)
        .transform_flatten(list(frame))
        .transform_calculate(x="datum['x_' + cost]", y="datum[measure]")
        .transform_filter("datum.task == task && isValid(datum.x) && isValid(datum.y)")
        .properties(width="container", height=400, title=alt.TitleParams(text=alt.expr("measure_words[measure]")))
        .add_params(
            choice("task", "task", {task: task for task in dict.fromkeys(frame["task"])}),
            choice("measure", "score", measures),
            choice("cost", "cost", costs, menu=False),
            alt.param(name="measure_words", value=measures),
            alt.param(name="cost_words", value={name: f"{text}, % of the full model" for name, text in costs.items()}),
        )
    )
    return _spec(chart, frame)


def _spec(chart: Any, frame: pd.DataFrame) -> dict[str, Any]:
    """Return a chart's specification with its data, and with the fonts, the ink and the background of the page.

    The data are one datum of columns, a third of the size of as many data.
    """
    words = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    lines = {"domain": False, "tickColor": INK, "tickOpacity": 0.3, "gridColor": INK, "gridOpacity": 0.12}
    title = {"color": INK, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "offset": 10}
    styled = chart.configure(background="transparent", font=FONT, padding=4).configure_view(stroke=None)
    styled = styled.configure_axis(**words, **lines, labelLimit=190, labelSeparation=8, titleFontWeight="normal")
    styled = styled.configure_legend(labelColor=INK, titleColor=INK, titleFontWeight="normal", labelFontSize=12)
    spec = dict(styled.configure_title(**title).to_dict(validate=False))
    known = frame.astype(object).where(frame.notna(), None)
    return spec | {"data": {"values": [known.to_dict("list")]}}
