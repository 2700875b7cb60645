"""Which knobs of finished cells are timed: those between which the budgets of equal cost lie, then operating points."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from benchmarks.analysis.select import mixture_at
from benchmarks.specs.base import TimingSpec
from benchmarks.store.records import BaseRecord, CellRecord

TimedKnobs = Mapping[str, Sequence[float]]
"""Key of a cell -> its knobs that are timed."""

_IN_TURN = (2.0, 1.5, 3.0)
"""The budgets: where a cell may have few points timed, the middle one comes first."""


def timed_knobs(records: Iterable[BaseRecord], protocol: TimingSpec) -> dict[str, list[float]]:
    """Choose what is timed of the finished cells of one (task, backbone, seed).

    A mixture of two knobs meets a budget exactly, so these two come first: of a grid, whose cells are one curve, those
    of the whole curve. What room ``protocol`` leaves goes to the operating points, the cheapest first. Cells of
    decoding, cells that cannot run live, and records that are older than hulls have their operating points alone.
    """
    found, at_most = list(records), protocol.points_per_cell
    wanted: dict[str, list[float]] = {}
    for key, knob in _neighbours([one for one in found if isinstance(one, CellRecord)]):
        wanted.setdefault(key, []).append(knob)
    for record in found:
        points = [point.knob for point in record.timed_points(at_most)]
        wanted[record.key] = list(dict.fromkeys([*wanted.get(record.key, []), *points]))[:at_most]
    return wanted


def _neighbours(records: Sequence[CellRecord]) -> Iterator[tuple[str, float]]:
    """Yield the key of the cell and the knob, on both sides of every budget, curve by curve."""
    live = [record for record in records if record.hull and record.timed_points(1)]
    for _, of_curve in groupby(sorted(live, key=_label), key=_label):
        points = [(record, record.curve_validation[point.place]) for record in of_curve for point in record.hull]
        layers = [point.average_layers for _, point in points]
        scores = [point.scores[record.metric] for record, point in points]
        for speedup in _IN_TURN:
            mixture = mixture_at(points[0][0].num_layers / speedup, layers, scores)
            for index in (mixture.first, mixture.second):
                record, point = points[index]
                yield record.key, point.knob


def _label(record: CellRecord) -> str:
    return record.label
