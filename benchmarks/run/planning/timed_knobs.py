"""Which knobs of finished cells are timed: those between which the budgets of equal cost lie, then operating points."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from benchmarks.analysis.equal_cost import mixture_at
from benchmarks.specs.base import TimingSpec
from benchmarks.specs.targets import Speedups
from benchmarks.store.generation_records import GenerationRecord
from benchmarks.store.records import BaseRecord, CellRecord

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
        knobs = [(record, knob) for record in of_curve if record.timed_points(1) for knob in _mixed(record)]
        layers, quality = [knob.layers for _, knob in knobs], [knob.quality for _, knob in knobs]
        for speedup in _in_turn(knobs[0][0].compared_at) if knobs else ():
            mixture = mixture_at(knobs[0][0].num_layers / speedup, layers, quality)
            for record, knob in (knobs[mixture.first], knobs[mixture.second]):
                yield record.key, knob.value


class _Knob(NamedTuple):
    """A knob that mixtures may be made of: layers on validation rows, and the quality that chooses among them."""

    value: float
    layers: float
    quality: float


def _mixed(record: BaseRecord) -> list[_Knob]:
    """Return the knobs of a cell that mixtures of equal cost may be made of; of decoding, the texts choose among them.

    None of records from before these were kept: of decoding, those whose references were not read.
    """
    if isinstance(record, GenerationRecord):
        if all(point.references is None for point in record.operating_points):
            return []
        return [
            _Knob(point.knob, point.validation.average_layers, point.scores[record.metric].value)
            for point in record.operating_points
        ]
    if not isinstance(record, CellRecord):
        return []
    hull = [record.curve_validation[point.place] for point in record.hull]
    return [_Knob(point.knob, point.average_layers, point.scores[record.metric]) for point in hull]


def _in_turn(speedups: Speedups) -> Speedups:
    first, middle, last = speedups
    return middle, first, last
