"""The points of the chart of curves: a line for every point of a curve, columns for every cost and every score."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.analysis.comparisons.equal_cost import at_equal_cost
from benchmarks.analysis.comparisons.ranking import compared_panels
from benchmarks.analysis.panels.means import mean_of_all
from benchmarks.analysis.panels.results import AnyPanel
from benchmarks.analysis.report.contents.content import Content, Measured
from benchmarks.analysis.rows.scored import MATCH, scored_of
from benchmarks.analysis.tables.columns import knob_text, short_reasons
from benchmarks.analysis.tables.overall import task_headings
from benchmarks.specs.targets import Target, in_order

Value: TypeAlias = str | float | None
_Line: TypeAlias = dict[str, Value]

_DRAWN_SPEEDUPS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Budgets that means over tasks are drawn at."""

_LEAST_STEP = 0.8
"""Percent of the full model's layers by which the drawn points of a knob differ at least."""


@dataclass(frozen=True)
class CurveData:
    """Columns of equal length, and what they can be read by.

    Columns: ``task``, ``n`` (the place of the method in the legend, -1 for the full model), ``knob``,
    ``x_layers``, ``x_flops``, ``x_b1``, ... (costs, in percent of the full model's), ``layers``, ``ms_b1``, ...,
    ``points``, ``score``, ``low``, ``high``, ``match``. ``line`` and ``dot`` say on which axes a point is on a line,
    and is marked by a dot: ``layers``, ``other`` (all but layers), ``all``, ``none``.
    """

    tasks: list[str]
    measures: Mapping[str, str]
    unit: str
    batch_sizes: list[int]
    columns: dict[str, list[Value]]


def curve_data(panels: Sequence[AnyPanel], labels: Sequence[str], content: Content) -> CurveData:
    """Collect the curves of some labels on every panel, and their means over the compared panels."""
    numbers = {label: number for number, label in enumerate(labels)}
    compared = compared_panels(panels)
    tasks = task_headings(panels)
    lines: list[_Line] = []
    if len(compared) > 1:
        mean = f"mean of {len(compared)} tasks"
        lines += [line | {"task": mean} for line in _mean_lines(compared, numbers, content)]
        tasks = [mean, *tasks]
    for name, panel in zip(tasks[-len(panels) :], panels, strict=True):
        lines += [line | {"task": name} for line in _lines(panel, numbers, content)]
    names = dict.fromkeys(name for line in lines for name in line)
    columns = {name: [_rounded(line.get(name)) for line in lines] for name in names}
    columns = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    words = {
        "points": "points against the full model",
        "score": "score, %",
        "match": "tokens as in the full model, %",
    }
    return CurveData(
        tasks=tasks,
        measures={name: text for name, text in words.items() if name in columns},
        unit=content.unit,
        batch_sizes=sorted({size for panel in panels for size in panel.batch_sizes}),
        columns=columns,
    )


def _rounded(value: Value) -> Value:
    return round(value, 3) if isinstance(value, float) else value


def _lines(panel: AnyPanel, numbers: Mapping[str, int], content: Content) -> Iterator[_Line]:
    """Yield the points of one panel: the full model's, then curve by curve the whole knob and the operating points."""
    measured = content.measured(panel)
    full = next((one for one in measured if one.row.label == content.full), None)
    if full is not None:
        yield _line(full, None) | {"n": -1, "knob": "full depth", "points": 0.0, "line": "none", "dot": "all"}
    for label, number in numbers.items():
        swept = content.swept(panel, label) if label in panel.methods else []
        full_score = _full_score(panel, panel.seeds_of(label), full)
        last_share = -np.inf
        for point in swept:
            share = 100 * point.layers / panel.num_layers
            if share - last_share < _LEAST_STEP and point is not swept[-1] and not point.shares:
                continue
            last_share = share
            yield {
                "n": number,
                "knob": point.knob,
                "x_layers": share,
                "layers": point.layers,
                "score": 100 * point.score,
                "points": _points(point.score, full_score),
                "line": "all" if point.shares else "layers",
                "dot": "other" if point.shares else "none",
                **{f"x_{name}": 100 * cost for name, cost in point.shares.items()},
            }
        for one in measured:
            if one.row.label == label:
                line = "other" if swept else "all"
                yield _line(one, _full_score(panel, one.row.seeds, full)) | {
                    "n": number,
                    "knob": knob_text(one.row),
                    "line": line,
                    "dot": "all",
                }


def _full_score(panel: AnyPanel, seeds: Sequence[int], full: Measured | None) -> float | None:
    """Return what a mean over seeds is set against: the mean of the full model's scores with the same seeds.

    Args:
        panel, seeds: what is averaged.
        full: the stock model's operating point, which stands in for a full model that was not run.
    """
    known = mean_of_all([scored_of(panel).full(seed) for seed in seeds])
    return full.score if known is None and full is not None else known


def _points(score: float, full_score: float | None) -> float | None:
    return None if full_score is None else 100 * (score - full_score)


def _line(one: Measured, full_score: float | None) -> _Line:
    """Return an operating point's columns."""
    costs = one.row.speedups
    line: _Line = {
        "x_layers": 100 / costs.layer_ratio,
        "layers": costs.average_layers,
        "x_flops": 100 / costs.flops_ratio if costs.flops_ratio else None,
        "score": 100 * one.score,
        "low": 100 * one.interval[0],
        "high": 100 * one.interval[1],
        "points": _points(one.score, full_score),
        "match": None if one.match is None else 100 * one.match,
    }
    for size, ratio in costs.time_ratios.items():
        line |= {f"x_b{size}": 100 / ratio, f"ms_b{size}": one.milliseconds.get(size)}
    return line


def _mean_lines(panels: Sequence[AnyPanel], numbers: Mapping[str, int], content: Content) -> Iterator[_Line]:
    """Yield means over panels: over layers of mixed knobs at equal cost, else of the knobs chosen for one target."""
    measured = [content.measured(panel) for panel in panels]
    full = [next((one for one in found if one.row.label == content.full), None) for found in measured]
    known = [one.score for one in full if one is not None]
    if known and len(known) == len(panels):
        sizes = sorted({size for panel in panels for size in panel.batch_sizes})
        costs: _Line = dict.fromkeys(("x_layers", "x_flops", *(f"x_b{size}" for size in sizes)), 100.0)
        score = 100 * float(np.mean(known))
        yield costs | {"n": -1, "knob": "full depth", "points": 0.0, "score": score, "line": "none", "dot": "all"}
    of_texts = any(one.match is not None for found in measured for one in found)
    for label, number in numbers.items():
        if any(label not in panel.methods for panel in panels):
            continue
        common: _Line = {"n": number}
        mixed = [line for s in _DRAWN_SPEEDUPS if (line := _mixed(panels, label, s, of_texts=of_texts)) is not None]
        yield from (common | line for line in mixed)
        role = "other" if mixed else "all"
        for target in _targets(measured, label):
            chosen = [_chosen_for(found, label, target) for found in measured]
            if all(one is not None for one in chosen):
                lines = [
                    _line(one, _full_score(panel, one.row.seeds, of_full))
                    for one, panel, of_full in zip(chosen, panels, full, strict=True)
                    if one is not None
                ]
                yield (
                    common | _mean(lines) | {"knob": f"chosen for {short_reasons([target])}", "line": role, "dot": role}
                )


def _mixed(panels: Sequence[AnyPanel], label: str, speedup: float, *, of_texts: bool) -> _Line | None:
    """Return the means of a curve's knobs mixed to a budget; None without the full model on some task."""
    found = [at_equal_cost(panel, label, speedup) for panel in panels]
    points = mean_of_all([one.points for one in found])
    if points is None:
        return None
    matches = [at_equal_cost(panel, label, speedup, MATCH).score for panel in panels] if of_texts else []
    share = float(np.mean([one.layers / panel.num_layers for one, panel in zip(found, panels, strict=True)]))
    return {
        "knob": f"knobs mixed to {speedup:g}x",
        "x_layers": 100 * share,
        "layers": share * float(np.mean([panel.num_layers for panel in panels])),
        "points": 100 * points,
        "score": 100 * float(np.mean([one.score for one in found])),
        "match": 100 * float(np.mean(matches)) if matches else None,
        "line": "layers",
        "dot": "layers",
    }


def _targets(measured: Sequence[Sequence[Measured]], label: str) -> list[Target]:
    return in_order(
        target for found in measured for one in found if one.row.label == label for target in one.row.targets
    )


def _chosen_for(measured: Sequence[Measured], label: str, target: Target) -> Measured | None:
    return next((one for one in measured if one.row.label == label and target in one.row.targets), None)


def _mean(lines: Sequence[_Line]) -> _Line:
    """Average what all lines know: costs geometrically, because they are ratios, and no intervals nor milliseconds."""
    found: _Line = {}
    for name in ("x_layers", "x_flops", "layers", "score", "points", "match", *(n for n in lines[0] if n[:3] == "x_b")):
        values = [value for line in lines if isinstance(value := line.get(name), float)]
        if len(values) == len(lines):
            found[name] = float(np.exp(np.mean(np.log(values))) if name.startswith("x_") else np.mean(values))
    return found
