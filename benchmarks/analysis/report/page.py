"""One self-contained HTML file that people keep open: headline, leaderboard, curves, exits, warnings, provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.report import libraries
from benchmarks.analysis.report.charts.curve_data import curve_data
from benchmarks.analysis.report.charts.curves import curves_chart
from benchmarks.analysis.report.charts.exits import exits_chart
from benchmarks.analysis.report.charts.headline import headline_chart
from benchmarks.analysis.report.charts.looks import Legend, legend_of
from benchmarks.analysis.report.contents.content import Content, Headline, Standing
from benchmarks.analysis.report.contents.points import operating_points
from benchmarks.analysis.report.contents.sortable import without_unknown
from benchmarks.analysis.rows.caveats import Caveat, caveats
from benchmarks.analysis.tables.overall import task_headings
from benchmarks.analysis.tables.provenance import machine, records_table
from benchmarks.store.folders import write_text
from benchmarks.store.records import BaseRecord

REPORT_FILE = "report.html"


def write_report(out_dir: Path, content: Content) -> Path:
    """Write ``report.html`` into a results folder and return its path. Raises UserError where it holds no results."""
    panels, faults = content.load(out_dir, None)
    warnings = caveats(out_dir, panels, faults, content.warnings)
    path = out_dir / REPORT_FILE
    write_text(path, render(out_dir.resolve().name, panels, warnings, content))
    return path


def render(name: str, panels: Sequence[AnyPanel], warnings: Sequence[Caveat], content: Content) -> str:
    """Return a page. Text from data is escaped: in HTML by Jinja, in charts by Vega, which writes text nodes.

    Args:
        name: of the results folder.
        panels: its records: facts, environments and provenance are taken from them.
        warnings: :func:`benchmarks.analysis.rows.caveats.caveats`.
        content: what is shown of them.
    """
    templates = Environment(
        loader=PackageLoader("benchmarks.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = [cell.record for panel in panels for cell in panel.cells]
    headline = content.headline(panels)
    legend = legend_of(panels, headline.standings if headline else ())
    tasks = task_headings(panels)
    return templates.get_template("report.html").render(
        name=name,
        facts=_facts(panels, records),
        best=_best(headline),
        headline=headline,
        leaderboard=without_unknown(content.leaderboard(panels)),
        legend=legend,
        charts=_charts(panels, headline, legend, content),
        by_task=content.by_task(panels),
        points=operating_points(panels, content),
        more=content.more(panels),
        how=[(task, content.how(panel)) for task, panel in zip(tasks, panels, strict=True)],
        warnings=_by_subject(warnings),
        environments=_environments(records),
        provenance=records_table(records),
        vega=libraries.vega(),
        datatables=libraries.datatables(),
    )


def _charts(
    panels: Sequence[AnyPanel], headline: Headline | None, legend: Legend, content: Content
) -> dict[str, dict[str, Any]]:
    """Return the specifications of the charts that have anything to show, by the elements that they are drawn in."""
    exits = {task: content.exits(panel) for task, panel in zip(task_headings(panels), panels, strict=True)}
    data = curve_data(panels, list(legend.methods), content)
    return {
        **({"#headline-chart": headline_chart(headline, legend.looks)} if headline else {}),
        "#curves-chart": curves_chart(data, legend),
        **({"#exits-chart": exits_chart(exits)} if any(exits.values()) else {}),
    }


def _best(headline: Headline | None) -> dict[str, list[Standing]]:
    """Return the two best curves at every budget."""
    found: dict[str, list[Standing]] = {}
    for one in headline.standings if headline else ():
        found.setdefault(one.budget, []).append(one)
    return {budget: sorted(ones, key=lambda one: -one.points)[:2] for budget, ones in found.items()}


def _facts(panels: Sequence[AnyPanel], records: Sequence[BaseRecord]) -> list[tuple[str, str]]:
    seeds = sorted({record.seed for record in records})
    return [
        ("tasks", str(len({panel.task for panel in panels}))),
        ("methods", str(len({record.label for record in records}))),
        ("backbones", ", ".join(sorted({panel.backbone for panel in panels}))),
        ("records", str(len(records))),
        ("seeds", ", ".join(map(str, seeds))),
        ("last record", max(record.finished_at for record in records)[:10]),
    ]


def _by_subject(warnings: Sequence[Caveat]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for warning in warnings:
        found.setdefault(warning.subject, []).append(warning.text)
    return found


def _environments(records: Sequence[BaseRecord]) -> list[tuple[str, int]]:
    """Return every kind of environment, with the number of records that were made in it."""
    described = [machine(record.environment) for record in records]
    return [(text, described.count(text)) for text in dict.fromkeys(described)]
