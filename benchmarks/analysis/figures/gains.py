"""Which method beats exits that look at nothing, and where: points over a static exit at equal layers, in colour."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.comparisons.ranking import block_name, compared_panels
from benchmarks.analysis.comparisons.static_gains import StaticGain, mean_gain, static_gains
from benchmarks.analysis.results import ORACLE, Panel
from benchmarks.analysis.tables.overall import task_headings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gains_figure(panels: Sequence[Panel]) -> "Figure | None":
    """Draw methods, best mean first, against tasks; None without static exits."""
    import seaborn
    from matplotlib.figure import Figure

    found = [{gain.label: gain for gain in static_gains(panel)} for panel in panels]
    labels = list(dict.fromkeys(label for panel in panels for label in panel.labels))
    labels = [label for label in labels if label != ORACLE and any(label in gains for gains in found)]
    if not labels:
        return None
    points = np.array([[_points(gains.get(label)) for gains in found] for label in labels])
    compared = [block_name(panel) for panel in compared_panels(panels)]
    counted = [gains for panel, gains in zip(panels, found, strict=True) if block_name(panel) in compared]
    means = np.array([_mean_points([gains.get(label) for gains in counted]) for label in labels])
    order = np.argsort(-means, kind="stable")  # those without a mean come last
    texts = np.array([[gains[label].text if label in gains else "" for gains in found] for label in labels])[order]
    columns = [heading.replace(" · ", "\n") for heading in task_headings(panels)]
    figure = Figure(figsize=(2.6 + 0.78 * (len(columns) + 1), 1.3 + 0.27 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    seaborn.heatmap(
        np.column_stack([means, points])[order],
        annot=np.column_stack([["" if np.isnan(mean) else f"{mean:+.1f}" for mean in means[order]], texts]),
        fmt="",
        annot_kws={"size": 7.5},
        cmap=seaborn.diverging_palette(35, 245, s=90, l=55, as_cmap=True),
        center=0,
        robust=True,
        linewidths=0.6,
        xticklabels=["mean", *columns],
        yticklabels=[labels[i] for i in order],
        cbar_kws={"label": "points over a static exit at equal layers", "shrink": 0.8},
        ax=axes,
    )
    axes.axvline(1, color="0.2", linewidth=1.2)
    axes.tick_params(axis="both", length=0, labelsize=8.5)
    axes.tick_params(axis="x", labelrotation=0, labelsize=7.5, top=True, labeltop=True, bottom=False, labelbottom=False)
    return figure


def _mean_points(gains: Sequence[StaticGain | None]) -> float:
    mean = mean_gain(gains)
    return float("nan") if mean is None else 100 * mean


def _points(gain: StaticGain | None) -> float:
    return float("nan") if gain is None else 100 * gain.gain
