"""The first chart of a report: points at equal cost, whatever the rows are."""

from collections.abc import Sequence

from benchmarks.analysis.comparisons.headline import Entry, headline
from benchmarks.analysis.comparisons.ranking import block_name
from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.report.contents.content import Headline, Standing
from benchmarks.analysis.tables.columns import OVER_NOTE
from benchmarks.analysis.tables.equal_cost import NO_ROWS_NOTE


def points_at_equal_cost(panels: Sequence[AnyPanel], how: str) -> Headline | None:
    """Return means over the tasks that (nearly) all methods are defined for.

    None without a full model, or without a curve that all these tasks have. ``how``: what points are, and how knobs are
    mixed.
    """
    found = headline(panels)
    if found is None or not found.entries:
        return None
    of_several = len(found.panels) > 1
    over = f"mean of {len(found.panels)} tasks" if of_several else block_name(found.panels[0])
    return Headline(
        title=f"Points against the full model at equal cost, {over}",
        against="the full model's score",
        budgets="speed-up in layers",
        standings=[_standing(entry, found.methods[entry.label]) for entry in found.entries.values()],
        notes=(
            f"Tasks: {', '.join(map(block_name, found.panels))}.",
            how,
            f"{OVER_NOTE}{' on some task' if of_several else ''}, and it stands there.",
            *(["Intervals: 95%, paired bootstrap over rows within tasks and over seeds."] if found.samples else []),
            *([NO_ROWS_NOTE] if found.lacks_rows else []),
        ),
    )


def _standing(entry: Entry, method: str) -> Standing:
    return Standing(
        label=entry.label,
        method=method,
        budget=f"{entry.speedup:g}x",
        points=100 * entry.points,
        interval=entry.interval and (100 * entry.interval[0], 100 * entry.interval[1]),
        layers=entry.layers,
        marks="†" if entry.is_over else "",
    )
