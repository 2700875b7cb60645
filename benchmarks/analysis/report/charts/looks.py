"""How charts look: the same colour for a method everywhere, told apart by colour-blind eyes, on white and on black.

Words and axes have the page's own ink (``currentColor``), so that a chart follows the page from light to dark.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from benchmarks.analysis.figures.styles import is_core
from benchmarks.analysis.panels.results import FULL, MAJORITY, REFERENCES, AnyPanel, role_of
from benchmarks.analysis.report.contents.content import Standing

INK = "currentColor"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
CORE = ("#D55E00", "#E69F00", "#CC79A7", "#B2432F")
"""Of ConsistentEE and its variants: warm."""
OTHERS = ("#0072B2", "#009E73", "#56B4E9", "#8A6FD1", "#7F8C1F")
"""Of the others: cold; Okabe and Ito's, and two that are as far from them as from each other."""
GREY = "#8b949e"
LINE = 22
"""Pixels of a line of a chart that has a line for every method."""
_LEADING = 5
_SHOWN_REFERENCE = "static"
_DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")


@dataclass(frozen=True)
class Look:
    """Colour, dash pattern and marker of a curve."""

    colour: str
    dash: list[int]
    shape: str


@dataclass(frozen=True)
class Legend:
    """The curves of a page.

    Attributes:
        methods: label -> method: ConsistentEE and its variants, then the others, the best first, then references.
        looks: of every label.
        shown: labels whose curves are in colour at first.
    """

    methods: dict[str, str]
    looks: dict[str, Look]
    shown: list[str]


def legend_of(panels: Sequence[AnyPanel], standings: Sequence[Standing]) -> Legend:
    """Return the curves of some panels, in the order of their standings; ConsistentEE and the leading are in colour."""
    points: dict[str, list[float]] = {}
    for one in standings:
        points.setdefault(one.label, []).append(one.points)
    found = {label: method for panel in panels for label, method in panel.methods.items()}
    curves = [label for label, method in found.items() if role_of(method) not in (FULL, MAJORITY)]

    def place(label: str) -> tuple[bool, bool, float, str]:
        core, known = is_core(found[label]), points.get(label)
        mean = sum(known) / len(known) if known else -float("inf")
        return role_of(found[label]) in REFERENCES, not core, 0.0 if core else -mean, label

    curves.sort(key=place)
    core = [label for label in curves if is_core(found[label])]
    others = [label for label in curves if label not in core and role_of(found[label]) not in REFERENCES]
    static = [label for label in curves if role_of(found[label]) == _SHOWN_REFERENCE]
    methods = {label: found[label] for label in curves}
    return Legend(methods, _looks(methods), [*core, *others[:_LEADING], *static])


def _looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Give every curve a look, those that come first the plainest."""
    core = [label for label, method in methods.items() if is_core(method)]
    references = [label for label, method in methods.items() if role_of(method) in REFERENCES]
    others = [label for label in methods if label not in {*core, *references}]
    return {
        **_cycled(core, CORE),
        **_cycled(others, OTHERS),
        **{label: Look(GREY, _DASHES[1 + i % 3], _SHAPES[i % len(_SHAPES)]) for i, label in enumerate(references)},
    }


def _cycled(labels: Sequence[str], colours: Sequence[str]) -> dict[str, Look]:
    return {
        label: Look(
            colours[i % len(colours)],
            _DASHES[i // len(colours) % len(_DASHES)],
            _SHAPES[(i + i // len(colours)) % len(_SHAPES)],
        )
        for i, label in enumerate(labels)
    }


def methods_axis(methods: Mapping[str, str], sort: alt.EncodingSortField, **axis: Any) -> alt.Y:
    """Return the axis that has a line for every method, ConsistentEE and its variants in bold."""
    core = json.dumps([label for label, method in methods.items() if is_core(method)])
    bold = {"condition": {"test": f"indexof({core}, datum.value) >= 0", "value": "bold"}, "value": "normal"}
    lines = alt.Axis(labelFontWeight=bold, ticks=False, labelPadding=8, **axis)
    return alt.Y("method:N", title=None, sort=sort, axis=lines)


def spec_of(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """Return a chart's specification, with the fonts, the ink and the background of the page."""
    words = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    lines = {"domain": False, "tickColor": INK, "tickOpacity": 0.3, "gridColor": INK, "gridOpacity": 0.12}
    fits = {"labelLimit": 190, "labelSeparation": 8, "titleFontWeight": "normal"}
    title = {"color": INK, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "offset": 10}
    styled = chart.configure(
        background="transparent", font=FONT, padding={"left": 0, "right": 4, "top": 4, "bottom": 4}
    )
    styled = styled.configure_view(stroke=None).configure_axis(**words, **lines, **fits).configure_title(**title)
    return dict(styled.to_dict())
