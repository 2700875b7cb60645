"""One self-contained HTML file: summary, tables, figures, environment, provenance and warnings; no network needed."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from benchmarks.analysis.caveats import Caveat, caveats
from benchmarks.analysis.figures.catalogue import FigureKind
from benchmarks.analysis.results import AnyPanel
from benchmarks.analysis.tables.provenance import machine, records_table
from benchmarks.analysis.tables.text import TextTable
from benchmarks.store.folders import Fault, write_text
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


@dataclass(frozen=True)
class Content:
    """What a page shows of one kind of results.

    Attributes:
        load: (folder, labels or None) -> panels and faults.
        overview: the table that comes first.
        figures: in the order of the page.
        over_tasks: tables over all panels.
        of_panel: tables of one panel, its operating points first.
        warnings: what a reader should know before trusting a panel.
    """

    load: Callable[[Path, Sequence[str] | None], tuple[list[AnyPanel], list[Fault]]]
    overview: Callable[[Sequence[AnyPanel]], TextTable]
    figures: Callable[[Sequence[AnyPanel]], Iterable[tuple[FigureKind, Figure | None]]]
    over_tasks: Callable[[Sequence[AnyPanel]], list[TextTable]]
    of_panel: Callable[[AnyPanel], list[TextTable]]
    warnings: Callable[[AnyPanel], list[Caveat]]


def write_report(out_dir: Path, content: Content) -> Path:
    """Write ``report.html`` into a results folder and return its path. Raises UserError where it holds no results."""
    panels, faults = content.load(out_dir, None)
    warnings = caveats(out_dir, panels, faults, content.warnings)
    path = out_dir / REPORT_FILE
    write_text(path, render(out_dir.resolve().name, panels, warnings, content))
    return path


def render(name: str, panels: Sequence[AnyPanel], warnings: Sequence[Caveat], content: Content) -> str:
    """Return a page. Text from data is escaped; the only markup and script are the template's own.

    Args:
        name: of the results folder.
        panels: its records: facts, environments and provenance are taken from them.
        warnings: :func:`benchmarks.analysis.caveats.caveats`.
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
    return templates.get_template("report.html").render(
        name=name,
        facts=_facts(panels, records),
        overview=content.overview(panels),
        warnings=warnings,
        figures=[EmbeddedFigure(kind, _data_uri(drawn)) for kind, drawn in content.figures(panels)],
        rankings=content.over_tasks(panels),
        sections=[_section(number, panel, content.of_panel(panel)) for number, panel in enumerate(panels)],
        environments=_environments(records),
        provenance=records_table(records),
    )


def _section(number: int, panel: AnyPanel, tables: Sequence[TextTable]) -> Section:
    operating, *others = tables
    shown = [replace(operating, title=f"Operating points · {operating.title}"), *others]
    return Section(f"task-{number}", f"{panel.task} · {panel.backbone}", tuple(shown))


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


def _environments(records: Sequence[BaseRecord]) -> list[tuple[str, int]]:
    """Return every kind of environment, with the number of records that were made in it."""
    described = [machine(record.environment) for record in records]
    return [(text, described.count(text)) for text in dict.fromkeys(described)]


def _data_uri(drawn: Figure | None) -> str | None:
    """Return a figure as a data URI, None for None."""
    if drawn is None:
        return None
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=_DPI)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
