"""How curves are told apart: twenty and more methods, on screen, in grey print, by colour-blind eyes.

No two methods share colour and marker, or colour and line, and every second turn through the colours has open markers.
The core methods and the strongest others are drawn boldly with intervals, the rest thinly; all keep their style in
every figure of a results folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.analysis.comparisons.curve_summaries import mean_layers_area
from benchmarks.analysis.results import CORE_METHOD, FULL, MAJORITY, ORACLE, REFERENCES, AnyPanel, Panel, role_of

BOLD_METHODS = 8
"""Up to so many competitors are all drawn boldly; of more, the core methods and the strongest others."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (6, 2)), (0, (2, 1)), (0, (1, 0.8)))
_REFERENCE_GREYS = {"static": "0.35", "random": "0.6", ORACLE: "0.35"}
_REFERENCE_LINES: dict[str, Any] = {"static": (0, (5, 2)), "random": (0, (1, 1.5)), ORACLE: (0, (1, 1))}
_REFERENCE_WIDTHS = {"static": 1.2, "random": 1.2, ORACLE: 0.8}


@dataclass(frozen=True)
class Style:
    """How a curve is drawn.

    Attributes:
        colour, line, width: of the line.
        marker: of the operating points; None for a reference, which has none.
        open_marker: the marker's face is white.
        bold: thick, with intervals, on top.
    """

    colour: Any
    line: Any
    marker: str | None
    width: float
    open_marker: bool = False
    bold: bool = True

    @property
    def face(self) -> Any:
        """Colour of the marker's face."""
        return "white" if self.open_marker else self.colour

    @property
    def edge(self) -> Any:
        """Colour of the marker's edge: filled markers have a white one, so that they stay apart where they meet."""
        return self.colour if self.open_marker else "white"

    def line2d(self, **more: Any) -> dict[str, Any]:
        """Return the keywords of matplotlib's ``Line2D`` for a legend."""
        return {
            "color": self.colour,
            "linestyle": self.line,
            "linewidth": self.width,
            "marker": self.marker or "",
            "markersize": 6.5 if self.bold else 5,
            "markerfacecolor": self.face,
            "markeredgecolor": self.edge,
            "markeredgewidth": 1.2 if self.open_marker else 0.7,
        } | more


def competitors(panels: Sequence[AnyPanel]) -> list[str]:
    """Return the curves that compete: the core method first, its variants next, then the others by name."""
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    curves = [label for label, method in methods.items() if role_of(method) not in (FULL, *REFERENCES)]
    return sorted(curves, key=lambda label: (methods[label] != CORE_METHOD, not is_core(methods[label]), label))


def is_core(method: str) -> bool:
    """Say whether a method is ConsistentEE or a variant of it."""
    return method.startswith(CORE_METHOD)


def bold_curves(panels: Sequence[Panel]) -> list[str]:
    """Return the curves that are drawn boldly: all of a few; of many, the core methods and the best by mean area."""
    curves = competitors(panels)
    if len(curves) <= BOLD_METHODS:
        return curves
    areas = {label: [mean_layers_area(panel, label) for panel in panels if label in panel.methods] for label in curves}
    core = [label for label in curves if is_core(panels_method(panels, label))][: BOLD_METHODS // 2]
    others = sorted((label for label in curves if label not in core), key=lambda label: -float(np.mean(areas[label])))
    return core + others[: BOLD_METHODS - len(core)]


def panels_method(panels: Sequence[AnyPanel], label: str) -> str:
    """Return the method behind a label, in the first panel that has it."""
    return next(panel.methods[label] for panel in panels if label in panel.methods)


def styles(panels: Sequence[Panel]) -> dict[str, Style]:
    """Give every curve its style, the same in all panels; the core methods come first, the references are grey."""
    return styles_with(panels, bold_curves(panels))


def styles_with(panels: Sequence[AnyPanel], bold: Sequence[str]) -> dict[str, Style]:
    """As :func:`styles`, where the curves to be drawn boldly are given."""
    import seaborn

    # Pink and yellow (the seventh and ninth) are too pale on white paper; grey (the eighth) is for the references.
    palette = [colour for i, colour in enumerate(seaborn.color_palette("colorblind")) if i not in (6, 7, 8)]
    # Bold curves come first, so that they have the strongest styles: filled markers, and all colours differ.
    ordered = sorted(competitors(panels), key=lambda label: label not in bold)
    found = {}
    for i, label in enumerate(ordered):
        turn, place = divmod(i, len(palette))
        found[label] = Style(
            colour=palette[place],
            line=_LINES[(place + 3 * turn) % len(_LINES)],
            marker=_MARKERS[(place + 2 * turn) % len(_MARKERS)],
            width=2.2 if i == 0 else 1.5 if label in bold else 0.9,
            open_marker=turn % 2 == 1,
            bold=label in bold,
        )
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    for label, method in sorted(methods.items()):
        role = role_of(method)
        if role in _REFERENCE_GREYS and role != MAJORITY:
            found[label] = Style(_REFERENCE_GREYS[role], _REFERENCE_LINES[role], None, _REFERENCE_WIDTHS[role])
    return found
