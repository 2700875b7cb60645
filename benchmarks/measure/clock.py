"""Time methods and the stock model in interleaved rounds, batch by batch, in a process that does nothing else.

Rows are in the order of the data. Everything is timed once a round, in rotating order, so that drift of the machine
affects all alike. All samples are kept.
"""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from benchmarks.specs.base import TimingSpec
from consistentee.engine.transcript import clock
from consistentee.progress import Steps, listening

Row = TypeVar("Row")
Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


def time_contenders(
    contenders: Sequence[Callable[[Sequence[Row]], Sample]],
    rows: Sequence[Row],
    protocol: TimingSpec,
    sizes: Sequence[Sequence[int]] | None = None,
) -> list[dict[int, list[list[Sample]]]]:
    """Time all contenders on the same rows.

    A contender answers one batch of rows and returns its sample, see :func:`timed`. ``sizes`` are the batch sizes of
    every contender; by default all of the protocol.

    Returns:
        Samples of every contender by batch size: ``[rounds][batches]``.
    """
    sizes = [protocol.batch_sizes] * len(contenders) if sizes is None else sizes
    taken: list[dict[int, list[list[Sample]]]] = [{size: [] for size in own} for own in sizes]
    passes = sum(size in own for own in sizes for size in protocol.batch_sizes)
    progress = Steps(f"{protocol.rounds} rounds of timing", protocol.rounds * passes)
    for round_number in range(protocol.rounds):
        gc.collect()
        order = [(round_number + place) % len(contenders) for place in range(len(contenders))]
        for size, contender in [(size, one) for size in protocol.batch_sizes for one in order if size in sizes[one]]:
            run = contenders[contender]
            timed_rows = rows[: protocol.rows_at(size)]
            batches = [timed_rows[start : start + size] for start in range(0, len(timed_rows), size)]
            with listening(None):
                for batch in batches[: protocol.warmup_batches]:
                    run(batch)
                gc.disable()
                try:
                    taken[contender][size].append([run(batch) for batch in batches])
                finally:
                    gc.enable()
            progress.add(1, len(timed_rows))
    return taken


def timed(run: Callable[[Sequence[Row]], Answer], batch: Sequence[Row], device: torch.device) -> tuple[float, Answer]:
    """Time a batch, with all work of its device, and return seconds and answer."""
    start = clock(device)
    answer = run(batch)
    return clock(device) - start, answer
