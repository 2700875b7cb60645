"""What a report shows of classification."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.analysis.figures.exits import exit_shares
from benchmarks.analysis.figures.styles import competitors
from benchmarks.analysis.panels.curves import pareto_front
from benchmarks.analysis.panels.published import published_for
from benchmarks.analysis.panels.results import FULL, Panel, load_panels
from benchmarks.analysis.report.contents.content import Content, Exits, Measured, Swept
from benchmarks.analysis.report.contents.headline import points_at_equal_cost
from benchmarks.analysis.report.contents.leaderboard import leaderboard, points_by_task
from benchmarks.analysis.rows.base import format_value
from benchmarks.analysis.rows.caveats import caveats_of_instances
from benchmarks.analysis.rows.frame import knobs_of
from benchmarks.analysis.rows.instances import row_for_half, table_rows
from benchmarks.analysis.tables.equal_cost import POINTS_NOTE, contrast_tables
from benchmarks.analysis.tables.operating import operating_table
from benchmarks.analysis.tables.overall import overall_tables
from benchmarks.analysis.tables.publications.published import published_table
from benchmarks.analysis.tables.text import TextTable

if TYPE_CHECKING:
    import pandas as pd


def _measured(panel: Panel) -> list[Measured]:
    return [
        Measured(
            row=row,
            score=row.scores[panel.metric],
            interval=row.interval,
            milliseconds={size: clock.milliseconds for size, clock in row.clocks.items()},
        )
        for row in table_rows(panel)
    ]


def _swept(panel: Panel, label: str) -> list[Swept]:
    """Return a whole curve, by rising layers; of a grid, the points on the Pareto front of VALIDATION data alone."""
    knobs = knobs_of(panel, label)
    by_knob = knobs.groupby(["parameters", "place"], sort=False)
    curve = by_knob[["knob", "layers", "quality", "validation_layers", "validation_quality"]].mean()
    curve = curve[by_knob.size() == by_knob.size().max()]  # means are over all seeds
    if knobs["parameters"].nunique() > 1:
        curve = curve.iloc[pareto_front(curve["validation_layers"], curve["validation_quality"])]
    curve = curve.sort_values("layers", kind="stable")
    has_hull = "hull" in knobs  # not of older records
    shares = _shares_at_hull(panel, knobs).loc[curve.index].to_dict("records") if has_hull else [{}] * len(curve)
    name = knobs["knob_name"].iloc[0]
    points = zip(*(curve[column].tolist() for column in ("knob", "layers", "quality")), shares, strict=True)
    return [
        Swept(f"{name}={format_value(knob)}", layers, score, {str(n): v for n, v in known.items() if not np.isnan(v)})
        for knob, layers, score, known in points
    ]


def _shares_at_hull(panel: Panel, knobs: "pd.DataFrame") -> "pd.DataFrame":
    """Return costs as shares of the full model's, by parameters and place; NaN but at knobs of the hull of every seed.

    Operating points, which have costs too, are shown by themselves.
    """
    names = {"flops_ratio": "flops", **{f"speedup_b{size}": f"b{size}" for size in panel.batch_sizes}}
    known = knobs.reindex(columns=["parameters", "place", "hull", "point", *names])
    at_hull = known["hull"].notna() & known["point"].isna()
    shares = (1 / known[list(names)].astype(float)).where(at_hull, axis=0).rename(columns=names)
    by_knob = shares.groupby([known["parameters"], known["place"]], sort=False)
    return by_knob.mean().where(by_knob.count().eq(by_knob.size(), axis=0))


def _exits(panel: Panel) -> list[Exits]:
    rows = [row_for_half(panel, label) for label in [*competitors([panel]), "random"] if label in panel.methods]
    return [
        Exits(row.label, row.method, row.speedups.average_layers, exit_shares(row).tolist())
        for row in rows
        if row is not None
    ]


def _more(panels: Sequence[Panel]) -> list[TextTable]:
    beside_papers = [
        published_table(panel)
        for panel in panels
        if any(published_for(panel.task, method) for method in panel.methods.values())
    ]
    return [*contrast_tables(panels), *overall_tables(panels), *beside_papers]


CLASSIFICATION = Content(
    unit="row",
    full=FULL,
    load=load_panels,
    headline=partial(points_at_equal_cost, how=POINTS_NOTE),
    leaderboard=leaderboard,
    by_task=points_by_task,
    measured=_measured,
    swept=_swept,
    exits=_exits,
    more=_more,
    how=lambda panel: operating_table(panel).notes,
    warnings=caveats_of_instances,
)
