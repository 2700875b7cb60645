"""The clock: contenders timed in interleaved rounds, batch by batch, in one process that does nothing else.

Real data order, no sorting. Every contender (the stock model is one of them) is timed once a round, and the order
rotates from round to round, so that slow drift of the machine hits all alike. Raw samples are kept.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from benchmarks.measure.garbage import garbage_collection_off
from benchmarks.specs.base import TimingSpec
from consistentee.progress import listening, tracked

Row = TypeVar("Row")
Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Pass:
    """One timed pass: a contender over all rows, at one batch size."""

    batch_size: int
    contender: int


def time_contenders(
    contenders: Sequence[Callable[[Sequence[Row]], Sample]],
    rows: Sequence[Row],
    protocol: TimingSpec,
    sizes: Sequence[Sequence[int]] | None = None,
) -> list[dict[int, list[list[Sample]]]]:
    """Time all contenders on the same rows.

    Args:
        contenders: each answers one batch of rows, and returns what the clock said of it, see :func:`timed`.
        rows: in the order of the data.
        protocol: rounds, batch sizes, warm-up.
        sizes: batch sizes of every contender, out of those of the protocol; by default all of them.

    Returns:
        For every contender its samples by batch size: ``[rounds][batches]``.
    """
    sizes = [protocol.batch_sizes] * len(contenders) if sizes is None else sizes
    taken: list[dict[int, list[list[Sample]]]] = [{size: [] for size in own} for own in sizes]
    for round_number in range(protocol.rounds):
        gc.collect()
        every = passes_of_round(round_number, len(contenders), protocol.batch_sizes)
        passes = [planned for planned in every if planned.batch_size in sizes[planned.contender]]
        for planned in tracked(passes, f"round {round_number + 1} of {protocol.rounds}", rows=len(rows)):
            run, size = contenders[planned.contender], planned.batch_size
            timed_rows = rows[: protocol.rows_at(size)]
            batches = [timed_rows[start : start + size] for start in range(0, len(timed_rows), size)]
            with listening(None):
                for batch in batches[: protocol.warmup_batches]:
                    run(batch)
                with garbage_collection_off():
                    taken[planned.contender][size].append([run(batch) for batch in batches])
    return taken


def passes_of_round(round_number: int, contenders: int, batch_sizes: Sequence[int]) -> list[_Pass]:
    """Return the passes of one round: batch size by batch size, all contenders, rotated by the round."""
    order = [(round_number + place) % contenders for place in range(contenders)]
    return [_Pass(size, contender) for size in batch_sizes for contender in order]


def timed(run: Callable[[Sequence[Row]], Answer], batch: Sequence[Row], device: torch.device) -> tuple[float, Answer]:
    """Return the seconds that a batch takes, and its answer; on a GPU its own clock is read."""
    if device.type == "cuda":
        return _timed_on_gpu(run, batch)
    start = time.perf_counter()
    answer = run(batch)
    return time.perf_counter() - start, answer


def _timed_on_gpu(run: Callable[[Sequence[Row]], Answer], batch: Sequence[Row]) -> tuple[float, Answer]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    answer = run(batch)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000, answer
