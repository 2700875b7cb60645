"""How curves are told apart: five leading ones and ours in colour, references in dark grey, all others in pale grey.

Colours are those that colour-blind eyes tell apart; markers and lines differ too, for print in grey. A curve looks the
same in every figure of a results folder.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.ranking import compared_panels
from benchmarks.analysis.panels.results import CORE_METHOD, FULL, REFERENCES, AnyPanel, labels_of_role, role_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist

LEADING = 5
"""So many of the strongest curves are told apart."""
MOST_OF_OURS = 3
"""So many of ConsistentEE's variants are told apart, whether they lead or not."""
FEW = 7
"""Of no more curves than these, all are told apart."""

# Okabe and Ito's colours ("Color Universal Design", 2008) without yellow, which is too pale on paper; and brown.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C5A2B")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.2)),
    (0, (4, 1, 1, 1)),
    (0, (2.2, 1)),
    (0, (7, 1, 1, 1, 1, 1)),
    (0, (9, 1.5)),
    (0, (1, 0.8)),
)
_REFERENCES: dict[str, tuple[str, Any]] = {"static": ("0.3", (0, (4, 2))), "random": ("0.3", (0, (1, 1.5)))}
_MARKER_SIZE = 4.2


@dataclass(frozen=True)
class Style:
    """How a curve is drawn.

    Attributes:
        colour, line, width: of the line.
        marker: of the points that it is known by; None for the first reference of its role and for curves that are not
            told apart.
        open_marker: the marker's face is white.
        named: it stands in the legend.
    """

    colour: str
    line: Any
    width: float
    marker: str | None = None
    open_marker: bool = False
    named: bool = True

    @property
    def layer(self) -> float:
        """Return what is drawn over what: the larger one is on top."""
        return 1.0 if not self.named else 3.0 if self.marker else 2.0

    def line2d(self, **more: Any) -> dict[str, Any]:
        """Return the keywords of matplotlib's ``Line2D``."""
        return {
            "color": self.colour,
            "linestyle": self.line,
            "linewidth": self.width,
            "marker": self.marker or "",
            "markersize": _MARKER_SIZE,
            "markerfacecolor": "white" if self.open_marker else self.colour,
            "markeredgecolor": self.colour if self.open_marker else "white",
            "markeredgewidth": 0.8 if self.open_marker else 0.4,
            "zorder": self.layer,
        } | more


OTHERS = Style(colour="0.82", line="-", width=0.6, named=False)
"""Of curves that are not told apart."""
FULL_MODEL: dict[str, Any] = {"color": "0.15", "linewidth": 0.8, "zorder": 1.5}
"""The line of the full model."""
STOCK_MODEL: dict[str, Any] = {"marker": "*", "markersize": 7}
"""The star of the stock model, where times are drawn."""


def competitors(panels: Sequence[AnyPanel]) -> list[str]:
    """Return the curves that compete: the core method first, its variants next, then the others by name."""
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    curves = [label for label, method in methods.items() if role_of(method) not in (FULL, *REFERENCES)]
    return sorted(curves, key=lambda label: (methods[label] != CORE_METHOD, not is_core(methods[label]), label))


def is_core(method: str) -> bool:
    """Say whether a method is ConsistentEE or a variant of it."""
    return method.startswith(CORE_METHOD)


def panels_method(panels: Sequence[AnyPanel], label: str) -> str:
    """Return the method behind a label, in the first panel that has it."""
    return next(panel.methods[label] for panel in panels if label in panel.methods)


def points_at_budgets(panel: AnyPanel, label: str) -> float:
    """Return how strong a curve is: its points against the full model at equal cost, mean of the three budgets.

    Without the full model it is the score.
    """
    found = [at_equal_cost(panel, label, speedup) for speedup in panel.speedups]
    return float(np.mean([one.score if one.points is None else one.points for one in found]))


def by_strength(panels: Sequence[AnyPanel]) -> list[str]:
    """Return the curves that compete, the strongest first, over tasks that most have; those of fewer tasks are last."""
    compared = compared_panels(panels)
    has = {label: [panel for panel in compared if label in panel.methods] for label in competitors(panels)}
    means = {
        label: np.mean([points_at_budgets(panel, label) for panel in known]) for label, known in has.items() if known
    }
    return sorted(has, key=lambda label: (-len(has[label]), -means.get(label, -np.inf)))


def told_apart(ranked: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Return which curves, of all by strength, are drawn in colour: all of a few, else the leading ones and ours."""
    if len(ranked) <= FEW:
        return list(ranked)
    return [label for label in ranked if label in ranked[:LEADING] or label in ours[:MOST_OF_OURS]]


def styles(panels: Sequence[AnyPanel]) -> dict[str, Style]:
    """Give every curve its style: those told apart first, the strongest first, then references, then the others."""
    ranked = by_strength(panels)
    ours = [label for label in ranked if is_core(panels_method(panels, label))]
    known = told_apart(ranked, ours)
    looks = {label: _in_colour(place) for place, label in enumerate(sorted(known, key=lambda label: label not in ours))}
    others = {label: OTHERS for label in ranked if label not in known}
    return {label: looks[label] for label in known} | dict(sorted(_references(panels).items(), reverse=True)) | others


def _references(panels: Sequence[AnyPanel]) -> dict[str, Style]:
    """Give references their lines; of several of one role, all but the suite's own have markers."""
    methods = {label: method for panel in panels for label, method in panel.methods.items()}
    looks = {}
    for role, line in _REFERENCES.items():
        markers = itertools.chain([None], itertools.cycle(_MARKERS))
        for marker, label in zip(markers, labels_of_role(methods, role), strict=False):
            looks[label] = Style(*line, 1.0, marker, open_marker=marker is not None)
    return looks


def _in_colour(place: int) -> Style:
    turn, colour = divmod(place, len(_COLOURS))
    number = (colour + 2 * turn) % len(_LINES)
    return Style(_COLOURS[colour], _LINES[number], 1.5 if place == 0 else 1.1, _MARKERS[number], open_marker=turn > 0)


def legend_handles(style_of: Mapping[str, Style], **of_full: Any) -> "list[Artist]":
    """Return the entries of a legend: curves that are told apart, references, the full model, and how many others.

    ``of_full``: what else ``Line2D`` is told of the full model.
    """
    from matplotlib.lines import Line2D

    named: list[Artist] = [Line2D([], [], **s.line2d(label=label)) for label, s in style_of.items() if s.named]
    named.append(Line2D([], [], **FULL_MODEL, **{"label": "full model"} | of_full))
    others = sum(not style.named for style in style_of.values())
    if others:
        named.append(Line2D([], [], **OTHERS.line2d(label=f"{others} other methods", linewidth=1.2)))
    return named
