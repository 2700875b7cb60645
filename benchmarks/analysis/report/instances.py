"""What the report shows of classification, and what of generation."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.analysis.caveats import caveats_of_instances, caveats_of_texts
from benchmarks.analysis.figures.catalogue import FigureKind, drawn_figures
from benchmarks.analysis.figures.generation import decoding_figure, decoding_styles, figure_name
from benchmarks.analysis.published import published_for
from benchmarks.analysis.report import Content
from benchmarks.analysis.results import Panel, load_panels
from benchmarks.analysis.rows.texts import GenerationPanel, load_generation_panels
from benchmarks.analysis.tables.decoding import generation_tables, match_overview
from benchmarks.analysis.tables.equal_cost import equal_cost_tables
from benchmarks.analysis.tables.headline import half_table, headline_tables
from benchmarks.analysis.tables.operating import panel_tables
from benchmarks.analysis.tables.overall import overall_tables
from benchmarks.analysis.tables.published import published_table
from benchmarks.analysis.tables.text import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWS = (
    "Top left and middle: ROUGE to the reference over average layers and over the time of decoding a token. Bottom "
    "left and middle: the share of tokens that are the full model's. Points are knobs chosen on validation prompts, "
    "with 95% intervals for bold methods; the star is the stock model's own generate. Top right: the mean exit layer "
    "along the text. Bottom right: what the knobs were chosen by. The numbers are in the tables."
)


def _tables_of_instances(panel: Panel) -> list[TextTable]:
    published = any(published_for(panel.task, method) for method in panel.methods.values())
    return [*panel_tables(panel), *([published_table(panel)] if published else [])]


def _figures_of_texts(panels: Sequence[GenerationPanel]) -> "Iterator[tuple[FigureKind, Figure | None]]":
    style_of = decoding_styles(panels)
    for panel in panels:
        title = f"{panel.task} · {panel.backbone}"
        kind = FigureKind(figure_name(panel, panels), title, _SHOWS, missing="", draw=lambda _: None)
        yield kind, decoding_figure(panel, style_of)


CLASSIFICATION = Content(
    load=load_panels,
    overview=lambda panels: (equal_cost_tables(panels) or [half_table(panels)])[-1],
    figures=drawn_figures,
    over_tasks=lambda panels: [*headline_tables(panels), *overall_tables(panels)],
    of_panel=_tables_of_instances,
    warnings=caveats_of_instances,
)
GENERATION = Content(
    load=load_generation_panels,
    overview=match_overview,
    figures=_figures_of_texts,
    over_tasks=lambda _: [],
    of_panel=generation_tables,
    warnings=caveats_of_texts,
)
