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
from benchmarks.analysis.published import published_for, published_table
from benchmarks.analysis.results import FULL, MAJORITY, ORACLE, AnyPanel, Panel, load_panels
from benchmarks.analysis.rows import row_for_half
from benchmarks.analysis.tables.headline import headline_tables
from benchmarks.analysis.tables.operating import machine, panel_tables
from benchmarks.analysis.tables.overall import overall_tables
from benchmarks.analysis.tables.text import MISSING, TextTable
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
        overview=overview_table(panels),
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
        provenance=provenance_table(records),
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


def overview_table(panels: Sequence[Panel]) -> TextTable:
    """Return every method's points against the full model, task by task, at the knob for half of the layers."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.labels))
    labels = [label for label in labels if _method(panels, label) not in (FULL, MAJORITY, ORACLE)]
    columns = [f"{panel.task} · {panel.backbone}" if _many_backbones(panels) else panel.task for panel in panels]
    rows = []
    for label in labels:
        losses = [_loss_in_points(panel, label) for panel in panels]
        known = [loss for loss in losses if loss is not None]
        mean = f"{sum(known) / len(known):+.1f}" if len(known) == len(panels) else MISSING
        rows.append((label, *(MISSING if loss is None else f"{loss:+.1f}" for loss in losses), mean))
    full = [_score_of_full(panel) for panel in panels]
    rows.insert(0, ("full model, %", *(MISSING if s is None else f"{100 * s:.1f}" for s in full), MISSING))
    return TextTable(
        title="Points against the full model, within half of the layers",
        headings=("method", *columns, "mean"),
        cells=tuple(rows),
        notes=(
            "Test score minus the full model's, in points, at the knob that scores best on validation data within half "
            "of the layers; means of seeds. n/a: not run, or no knob stays within half of the layers.",
        ),
        words=("method",),
    )


def _method(panels: Sequence[Panel], label: str) -> str:
    return next(panel.methods[label] for panel in panels if label in panel.methods)


def _many_backbones(panels: Sequence[Panel]) -> bool:
    return len({panel.backbone for panel in panels}) > 1


def _score_of_full(panel: Panel) -> float | None:
    labels = [label for label, method in panel.methods.items() if method == FULL]
    row = row_for_half(panel, labels[0]) if labels else None
    return None if row is None else row.scores[panel.metric]


def _loss_in_points(panel: Panel, label: str) -> float | None:
    row = row_for_half(panel, label) if label in panel.methods else None
    full = _score_of_full(panel)
    return None if row is None or full is None else 100 * (row.scores[panel.metric] - full)


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


def provenance_table(records: Sequence[BaseRecord]) -> TextTable:
    """Return where every record comes from: its key, commit, time and command."""
    return TextTable(
        title="Records",
        headings=(
            "task",
            "backbone",
            "method",
            "parameters",
            "seed",
            "train s",
            "finished",
            "commit",
            "key",
            "command",
        ),
        cells=tuple(
            (
                record.task,
                record.backbone,
                record.label,
                ", ".join(f"{name}={value}" for name, value in sorted(record.parameters.items())) or "defaults",
                str(record.seed),
                f"{record.train_seconds:.0f}",
                record.finished_at[:19].replace("T", " "),
                str(record.environment.get("commit") or MISSING)[:10],
                record.key[:12],
                record.command,
            )
            for record in records
        ),
        notes=("Keys are hashes of specification, data, code and library versions; here their first 12 characters.",),
        words=("task", "backbone", "method", "parameters", "finished", "commit", "key", "command"),
    )


def data_uri(drawn: Figure | None) -> str | None:
    """Return a figure as a data URI, None for None."""
    if drawn is None:
        return None
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=_DPI)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
