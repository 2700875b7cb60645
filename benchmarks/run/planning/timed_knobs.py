"""Which knobs of finished cells are timed: those between which the budgets of equal cost lie, then operating points."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from benchmarks.analysis.panels.select import mixture_at
from benchmarks.specs.base import TimingSpec
from benchmarks.specs.targets import Speedups
from benchmarks.store.generation_records import GenerationRecord, ReplayPoint
from benchmarks.store.records import BaseRecord, CellRecord, CurvePoint

TimedKnobs = Mapping[str, Sequence[float]]
"""Key of a cell -> its knobs that are timed."""


def timed_knobs(records: Iterable[BaseRecord], protocol: TimingSpec) -> dict[str, list[float]]:
    """Choose what is timed of the finished cells of one (task, backbone, seed).

    A mixture of two knobs meets a budget exactly, so these two come first: of a grid, whose cells are one curve, those
    of the whole curve. The middle budget comes first, for a cell may have few points timed. What room ``protocol``
    leaves goes to the operating points, the cheapest first. Cells that cannot run live, and records that are older than
    hulls have these alone.
    """
    found, at_most = list(records), protocol.points_per_cell
    wanted: dict[str, list[float]] = {}
    for key, knob in _neighbours(found):
        wanted.setdefault(key, []).append(knob)
    for record in found:
        points = [point.knob for point in record.timed_points(at_most)]
        wanted[record.key] = list(dict.fromkeys([*wanted.get(record.key, []), *points]))[:at_most]
    return wanted


def _neighbours(records: Sequence[BaseRecord]) -> Iterator[tuple[str, float]]:
    """Yield the key of the cell and the knob, on both sides of every budget, curve by curve."""
    by_label = attrgetter("label")
    for _, of_curve in groupby(sorted(records, key=by_label), key=by_label):
        points = [(record, point) for record in of_curve if record.timed_points(1) for point in _mixed(record)]
        layers = [point.average_layers for _, point in points]
        quality = [point.quality(record.metric) for record, point in points]
        for speedup in _in_turn(points[0][0].compared_at) if points else ():
            mixture = mixture_at(points[0][0].num_layers / speedup, layers, quality)
            for index in (mixture.first, mixture.second):
                record, point = points[index]
                yield record.key, point.knob


def _mixed(record: BaseRecord) -> Sequence[CurvePoint | ReplayPoint]:
    """Return the knobs of a cell, on validation rows, that mixtures of equal cost may be made of.

    None of records from before these were kept: of decoding, those whose references were not read.
    """
    if isinstance(record, GenerationRecord):
        is_old = all(point.references is None for point in record.operating_points)
        return [] if is_old else [point.validation for point in record.operating_points]
    return [record.curve_validation[point.place] for point in record.hull] if isinstance(record, CellRecord) else []


def _in_turn(speedups: Speedups) -> Speedups:
    first, middle, last = speedups
    return middle, first, last
