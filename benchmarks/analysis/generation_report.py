"""The HTML report of a results folder of generation, on the page that classification has."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.analysis.caveats import Caveat, caveats_of_clock, caveats_of_folder, caveats_of_records
from benchmarks.analysis.figures.catalogue import FigureKind
from benchmarks.analysis.figures.generation import decoding_figure, decoding_styles, figure_name
from benchmarks.analysis.report import REPORT_FILE, EmbeddedFigure, Section, data_uri, render_page
from benchmarks.analysis.rows.texts import GenerationPanel, generation_rows, load_generation_panels
from benchmarks.analysis.tables.decoding import generation_tables, match_overview
from benchmarks.store.folders import Fault, write_text

_SHOWS = (
    "Top left and middle: ROUGE to the reference over average layers and over the time of decoding a token. Bottom "
    "left and middle: the share of tokens that are the full model's. Points are knobs chosen on validation prompts, "
    "with 95% intervals for bold methods; the star is the stock model's own generate. Top right: the mean exit layer "
    "along the text. Bottom right: what the knobs were chosen by. The numbers are in the tables."
)


def write_generation_report(out_dir: Path) -> Path:
    """Write ``report.html`` into a results folder and return its path. Raises UserError: it holds no results."""
    panels, faults = load_generation_panels(out_dir)
    style_of = decoding_styles(panels)
    page = render_page(
        out_dir.resolve().name,
        panels,
        generation_caveats(out_dir, panels, faults),
        overview=match_overview(panels),
        figures=[
            EmbeddedFigure(_figure_kind(panel, panels), data_uri(decoding_figure(panel, style_of))) for panel in panels
        ],
        rankings=[],
        sections=[_section(number, panel) for number, panel in enumerate(panels)],
    )
    path = out_dir / REPORT_FILE
    write_text(path, page)
    return path


def _figure_kind(panel: GenerationPanel, panels: Sequence[GenerationPanel]) -> FigureKind:
    name = figure_name(panel, panels)
    return FigureKind(name, f"{panel.task} · {panel.backbone}", _SHOWS, missing="", draw=lambda _: None)


def _section(number: int, panel: GenerationPanel) -> Section:
    operating, *others = generation_tables(panel)
    tables = [replace(operating, title=f"Operating points · {operating.title}"), *others]
    return Section(f"task-{number}", f"{panel.task} · {panel.backbone}", tuple(tables))


def generation_caveats(out_dir: Path, panels: Sequence[GenerationPanel], faults: Sequence[Fault]) -> list[Caveat]:
    """Return the warnings about a results folder of generation, the gravest first."""
    return [
        *caveats_of_folder(out_dir, faults),
        *(caveat for panel in panels for caveat in _of_panel(panel)),
        *caveats_of_records(panels),
    ]


def _of_panel(panel: GenerationPanel) -> list[Caveat]:
    name = f"{panel.task} · {panel.backbone}"
    clocks = [(clock.spread, size, row.label) for row in generation_rows(panel) for size, clock in row.clocks.items()]
    found = caveats_of_clock(panel, clocks)
    record = panel.cells[0].record
    if record.truncated_prompts:
        found.append(
            Caveat(
                "prompts cut",
                f"{name}: {record.truncated_prompts} of {record.test_rows} test prompts were cut to "
                f"{record.max_prompt_tokens} tokens.",
            )
        )
    changed = [row.label for row in generation_rows(panel) if row.acceptance is not None and row.token_match.value < 1]
    if changed:
        found.append(
            Caveat("drafts differ", f"{name}: texts of {', '.join(changed)} are not all those of the full model.")
        )
    return found
