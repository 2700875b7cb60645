"""The clock: contenders timed in interleaved rounds, batch by batch, in one process that does nothing else.

Tokenised input, real data order, no sorting. Every contender (the stock model is one of them) is timed once a round,
and the order rotates from round to round, so that slow drift of the machine hits all alike. Raw samples are kept.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.store.records import TimingSamples
from benchmarks.store.spec import TimingSpec
from consistentee.data.encoding import Encoding


@dataclass(frozen=True)
class Runner:
    """What is timed: ``run`` answers one batch of tokenised rows, from collation to the answers."""

    name: str
    run: Callable[[Sequence[Encoding]], object]


@dataclass(frozen=True)
class _Pass:
    """One timed pass: a contender over all rows, at one batch size."""

    batch_size: int
    contender: int


def time_contenders(
    contenders: Sequence[Runner],
    rows: Sequence[Encoding],
    protocol: TimingSpec,
    device: torch.device,
) -> list[list[TimingSamples]]:
    """Time all contenders on the same rows.

    Args:
        contenders: what is timed.
        rows: tokenised rows, in the order of the data.
        protocol: rounds, batch sizes, warm-up.
        device: where the contenders compute; on a GPU its own clock is read.

    Returns:
        For every contender its samples, one a batch size.
    """
    seconds: dict[_Pass, list[list[float]]] = {}
    for round_number in range(protocol.rounds):
        gc.collect()
        for planned in passes_of_round(round_number, len(contenders), protocol.batch_sizes):
            batches = _batches(rows, planned.batch_size)
            run = contenders[planned.contender].run
            for batch in batches[: protocol.warmup_batches]:
                run(batch)
            with _garbage_collection_off():
                seconds.setdefault(planned, []).append([_timed(run, batch, device) for batch in batches])
    return [
        [_samples(size, len(rows), seconds[_Pass(size, index)]) for size in protocol.batch_sizes]
        for index in range(len(contenders))
    ]


def passes_of_round(round_number: int, contenders: int, batch_sizes: Sequence[int]) -> list[_Pass]:
    """Return the passes of one round: batch size by batch size, all contenders, rotated by the round."""
    order = [(round_number + place) % contenders for place in range(contenders)]
    return [_Pass(size, contender) for size in batch_sizes for contender in order]


def _samples(batch_size: int, rows: int, seconds: list[list[float]]) -> TimingSamples:
    return TimingSamples(
        batch_size=batch_size,
        rows=rows,
        seconds_per_round=[sum(batches) for batches in seconds],
        seconds_per_batch=seconds,
    )


def _batches(rows: Sequence[Encoding], size: int) -> list[Sequence[Encoding]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _timed(run: Callable[[Sequence[Encoding]], object], batch: Sequence[Encoding], device: torch.device) -> float:
    if device.type == "cuda":
        return _timed_on_gpu(run, batch)
    start = time.perf_counter()
    run(batch)
    return time.perf_counter() - start


def _timed_on_gpu(run: Callable[[Sequence[Encoding]], object], batch: Sequence[Encoding]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run(batch)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
