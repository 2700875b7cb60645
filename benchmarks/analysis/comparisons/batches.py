"""Batches in step and regrouped: what decoding takes beside stock ``generate``, and beside what its layers allow.

Two yardsticks, both of the same rounds. Stock ``generate`` with as many prompts under way says what a server gains; and
stock ``generate`` at the same batch, its layers cut to those that tokens call while embedding and LM head stay, says
what the layers allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.analysis.rows.texts import GenerationPanel
from benchmarks.store.generation_records import DecodingContender, DecodingSamples


class Batch(NamedTuple):
    """How many prompts are under way, and how many of them run at a time."""

    in_flight: int
    size: int

    @property
    def name(self) -> str:
        """In words: ``8``; or ``8 of 32``."""
        return str(self.size) if self.in_flight == self.size else f"{self.size} of {self.in_flight}"


@dataclass(frozen=True)
class BatchTimes:
    """What one contender takes; medians over the rounds.

    Attributes:
        tokens_per_second: of decoding.
        speedup: stock ``generate``'s time of a token with as many prompts under way / this one.
        of_allowed: the time of a token that the layers allow / this one: 1 where the clock follows the layers. None
            where the time of embedding and LM head was not taken.
        latency, latency_p90: seconds until a text had ended, since all under way were asked for; None where that was
            not noted.
    """

    tokens_per_second: float
    speedup: float | None
    of_allowed: float | None
    latency: float | None
    latency_p90: float | None


@dataclass(frozen=True)
class TimedPoint:
    """A knob of a curve that was timed with a seed; the stock model's own ``generate`` has none.

    Attributes:
        label, knob_name, knob: what was timed.
        layers: called for a decoded token.
        times: by batch.
    """

    label: str
    knob_name: str
    knob: float | None
    layers: float
    times: dict[Batch, BatchTimes]


def timed_batches(panel: GenerationPanel) -> list[TimedPoint]:
    """Return all that was timed of a panel, stock ``generate`` first, then curve by curve, fewest layers first."""
    names = {cell.record.label: cell.record.knob_name for cell in panel.cells}
    found = [
        TimedPoint(
            label=one.label,
            knob_name=names.get(one.label, ""),
            knob=one.knob,
            layers=one.average_layers,
            times=dict(_times(one, stock, panel.num_layers)),
        )
        for timing in panel.timings
        for one in timing.contenders
        if (stock := panel.stock(timing.seed, beside=one)) is not None and (one is stock or one.label in panel.methods)
    ]
    places = {label: place for place, label in enumerate(panel.labels)}
    return sorted(found, key=lambda point: (places.get(point.label, -1), point.layers))


def _times(here: DecodingContender, stock: DecodingContender, num_layers: int) -> Iterator[tuple[Batch, BatchTimes]]:
    by_size = {sample.batch_size: sample for sample in stock.samples}
    for sample in here.samples:
        if not sample.round_seconds:
            continue
        seconds = np.array(sample.round_seconds)
        beside, same_size = by_size.get(sample.under_way), by_size.get(sample.batch_size)
        share = (here.average_layers if sample.layers_a_token is None else sample.layers_a_token) / num_layers
        completed = [second for of_round in sample.completed_seconds for second in of_round]
        yield (
            Batch(sample.under_way, sample.batch_size),
            BatchTimes(
                tokens_per_second=float(1 / np.median(seconds)),
                speedup=None if beside is None else float(np.median(np.array(beside.round_seconds) / seconds)),
                of_allowed=None if same_size is None else _of_allowed(seconds, same_size, share),
                latency=float(np.median(completed)) if completed else None,
                latency_p90=float(np.percentile(completed, 90)) if completed else None,
            ),
        )


def _of_allowed(seconds: np.ndarray, stock: DecodingSamples, share: float) -> float | None:
    if not stock.head_seconds:
        return None
    full = np.array(stock.round_seconds)
    head = np.array(list(map(sum, stock.head_seconds))) / sum(stock.decoded_tokens)
    return float(np.median((head + (full - head) * share) / seconds))


def batches_of(points: Sequence[TimedPoint]) -> list[Batch]:
    """Return the batches that anything was timed at: as many under way, then as many at a time."""
    return sorted({batch for point in points for batch in point.times})


def points_at(points: Sequence[TimedPoint], layers: float) -> list[TimedPoint]:
    """Return of every curve the timed knob whose layers are nearest; of stock ``generate`` its only one."""
    nearest: dict[str, TimedPoint] = {}
    for point in sorted(points, key=lambda point: abs(point.layers - layers)):
        nearest.setdefault(point.label, point)
    return [point for point in points if point is nearest[point.label]]
