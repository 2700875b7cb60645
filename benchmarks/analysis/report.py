"""One self-contained HTML file: summary, tables, figures, environment, provenance and warnings; no network needed."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from benchmarks.analysis.caveats import Caveat, caveats
from benchmarks.analysis.figures.catalogue import FigureKind, drawn_figures
from benchmarks.analysis.results import AnyPanel, Panel, load_panels
from benchmarks.analysis.tables.equal_cost import equal_cost_tables
from benchmarks.analysis.tables.headline import half_table, headline_tables
from benchmarks.analysis.tables.operating import panel_tables
from benchmarks.analysis.tables.overall import overall_tables
from benchmarks.analysis.tables.provenance import machine, records_table
from benchmarks.analysis.tables.published import published_for, published_table
from benchmarks.analysis.tables.text import TextTable
from benchmarks.store.folders import write_text
from benchmarks.store.records import BaseRecord

REPORT_FILE = "report.html"
_DPI = 110


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure as a data URI, or why there is none."""

    kind: FigureKind
    uri: str | None


@dataclass(frozen=True)
class Section:
    """The tables of one (task, backbone)."""

    anchor: str
    title: str
    tables: tuple[TextTable, ...]


def write_report(out_dir: Path) -> Path:
    """Write ``report.html`` into a results folder and return its path.

    Raises:
        UserError: the folder holds no results.
    """
    panels, faults = load_panels(out_dir)
    path = out_dir / REPORT_FILE
    write_text(path, render(out_dir.resolve().name, panels, caveats(out_dir, panels, faults)))
    return path


def render(name: str, panels: Sequence[Panel], warnings: Sequence[Caveat]) -> str:
    """Return the page of a folder of classification.

    Args:
        name: of the results folder.
        panels: its records.
        warnings: :func:`benchmarks.analysis.caveats.caveats`.
    """
    return render_page(
        name,
        panels,
        warnings,
        overview=(equal_cost_tables(panels) or [half_table(panels)])[-1],
        figures=[EmbeddedFigure(kind, data_uri(drawn)) for kind, drawn in drawn_figures(panels)],
        rankings=[*headline_tables(panels), *overall_tables(panels)],
        sections=[_section(number, panel) for number, panel in enumerate(panels)],
    )


def render_page(
    name: str,
    panels: Sequence[AnyPanel],
    warnings: Sequence[Caveat],
    *,
    overview: TextTable,
    figures: Sequence[EmbeddedFigure],
    rankings: Sequence[TextTable],
    sections: Sequence[Section],
) -> str:
    """Return a page. Text from data is escaped; the only markup and script are the template's own.

    Args:
        name: of the results folder.
        panels: its records, of any kind: facts, environments and provenance are taken from them.
        warnings: see :mod:`benchmarks.analysis.caveats`.
        overview, figures, rankings, sections: what is shown.
    """
    templates = Environment(
        loader=PackageLoader("benchmarks.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = [cell.record for panel in panels for cell in panel.cells]
    return templates.get_template("report.html").render(
        name=name,
        facts=_facts(panels, records),
        overview=overview,
        warnings=warnings,
        figures=figures,
        rankings=rankings,
        sections=sections,
        environments=_environments(records),
        provenance=records_table(records),
    )


def _facts(panels: Sequence[AnyPanel], records: Sequence[BaseRecord]) -> list[tuple[str, str]]:
    seeds = sorted({record.seed for record in records})
    return [
        ("tasks", str(len({panel.task for panel in panels}))),
        ("backbones", ", ".join(sorted({panel.backbone for panel in panels}))),
        ("curves", str(len({record.label for record in records}))),
        ("records", str(len(records))),
        ("seeds", ", ".join(map(str, seeds))),
        ("last record", max(record.finished_at for record in records)[:10]),
    ]


def _section(number: int, panel: Panel) -> Section:
    operating, *others = panel_tables(panel)
    tables = [replace(operating, title=f"Operating points · {operating.title}"), *others]
    if any(published_for(panel.task, method) for method in panel.methods.values()):
        tables.append(published_table(panel))
    return Section(f"task-{number}", f"{panel.task} · {panel.backbone}", tuple(tables))


def _environments(records: Sequence[BaseRecord]) -> list[tuple[str, int]]:
    """Return every kind of environment, with the number of records that were made in it."""
    described = [machine(record.environment) for record in records]
    return [(text, described.count(text)) for text in dict.fromkeys(described)]


def data_uri(drawn: Figure | None) -> str | None:
    """Return a figure as a data URI, None for None."""
    if drawn is None:
        return None
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=_DPI)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
