"""The headline as a figure: points against the full model at every cost, means over tasks, knobs mixed to that cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.ranking import compared_panels
from benchmarks.analysis.figures.grids import panel_grid
from benchmarks.analysis.figures.styles import Style, is_core, panels_method, styles
from benchmarks.analysis.results import FULL, MAJORITY, ORACLE, REFERENCES, Panel, role_of
from benchmarks.analysis.select import SPEEDUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN_SPEEDUPS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5)
_LEADING = 5
_DEEPEST_POINTS = 9.0  # below this a curve says only that it fails


def equal_cost_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw the mean points of every curve over the speed-up in layers; None without the full model.

    The core methods, the leading ones at the middle budget and the references are drawn in colour, the rest in grey.
    """
    known = compared_panels([panel for panel in panels if FULL in panel.methods.values()])
    every = dict.fromkeys(label for panel in known for label in panel.labels)
    labels = [label for label in every if _is_drawn(known, label)]
    if not labels:
        return None
    means = {label: _means(known, label) for label in labels}
    told = _told_apart(known, means)
    looks = styles(panels)
    figure, (axes,) = panel_grid(1, columns=1, width=7.2, height=4.2)
    for label in [*told, *(label for label in labels if label not in told)]:  # the legend has the best first
        _draw(axes, label, means[label], looks[label] if label in told else None)
    _label_axes(axes, len(known))
    return figure


def _is_drawn(panels: Sequence[Panel], label: str) -> bool:
    """Say whether a curve is there on all tasks, and can be run on new rows."""
    return all(label in panel.methods for panel in panels) and role_of(panels_method(panels, label)) not in (
        FULL,
        ORACLE,
        MAJORITY,
    )


def _means(panels: Sequence[Panel], label: str) -> np.ndarray:
    """Return the mean points over tasks at every drawn speed-up: [speedups]."""
    points = [[at_equal_cost(panel, label, speedup).points or 0.0 for speedup in _DRAWN_SPEEDUPS] for panel in panels]
    return 100 * np.mean(points, axis=0)


def _told_apart(panels: Sequence[Panel], means: dict[str, np.ndarray]) -> list[str]:
    """Return the curves that get a colour and a name: core, leading over the three budgets, references."""
    methods = {label: panels_method(panels, label) for label in means}
    budgets = [_DRAWN_SPEEDUPS.index(speedup) for speedup in SPEEDUPS]
    others = [label for label in means if role_of(methods[label]) not in REFERENCES and not is_core(methods[label])]
    leading = sorted(others, key=lambda label: -float(means[label][budgets].mean()))[:_LEADING]
    named = {label for label in means if is_core(methods[label]) or role_of(methods[label]) in REFERENCES}
    return sorted(named | set(leading), key=lambda label: -float(means[label][budgets].mean()))


def _draw(axes: "Axes", label: str, points: np.ndarray, style: Style | None) -> None:
    if style is None:
        axes.plot(_DRAWN_SPEEDUPS, points, color="0.85", linewidth=0.9, zorder=1)
        return
    axes.plot(
        _DRAWN_SPEEDUPS,
        points,
        label=label,
        zorder=4 if style.bold else 3,
        markevery=[_DRAWN_SPEEDUPS.index(speedup) for speedup in SPEEDUPS],
        **style.line2d(),
    )


def _label_axes(axes: "Axes", tasks: int) -> None:
    import seaborn

    axes.axhline(0, color="0.2", linewidth=0.8, zorder=2)
    axes.set_xticks([1, *SPEEDUPS, 3.5], ["1x", *(f"{speedup:g}x" for speedup in SPEEDUPS), "3.5x"])
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(lowest, -_DEEPEST_POINTS), highest)
    axes.set_xlabel("speed-up in layers (full model's layers / average layers)")
    axes.set_ylabel(f"points against the full model{f', mean of {tasks} tasks' if tasks > 1 else ''}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    seaborn.despine(ax=axes)
