"""Time ways of answering the same rows against each other, in interleaved rounds on this machine."""

import gc
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from consistentee.backbones.catalog import resolve
from consistentee.backbones.pretrained import read_model
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import classify_encoded
from consistentee.models.encoder import MultiExitModel
from consistentee.progress import Steps, listening
from consistentee.rules.exit_rule import ExitRule

NameT = TypeVar("NameT")
RowT = TypeVar("RowT")
BatchT = TypeVar("BatchT")
SampleT = TypeVar("SampleT")

Run = Callable[[Sequence[Encoding]], object]
"""Answer one batch of tokenised rows."""

BATCH_SIZES = (1, 32)
ROUNDS = 5
TIMED_ROWS = {1: 48, 32: 256}
"""Rows that are timed in a round, by batch size."""


def time_in_rounds(
    runs: Sequence[Callable[[Sequence[RowT]], SampleT]],
    rows: Sequence[RowT],
    rows_by_size: Mapping[int, int],
    sizes: Sequence[Collection[int]] | None = None,
    *,
    rounds: int,
    warmup: int = 2,
) -> list[dict[int, list[list[SampleT]]]]:
    """Take samples of all runs, batch by batch, in a process that does nothing else.

    Everything is run once a round, in rotating order, so that drift of the machine affects all alike: ratios are to be
    taken within rounds.

    Args:
        runs: each answers a batch of rows and returns its sample, such as seconds.
        rows: rows in the order of the data.
        rows_by_size: how many of them are timed, by batch size.
        sizes: the batch sizes of every run; all by default.
        rounds, warmup: number of rounds, and of the batches that are run once more before.

    Returns:
        Samples of every run by batch size: ``[rounds][batches]``.
    """
    sizes = [rows_by_size.keys()] * len(runs) if sizes is None else sizes
    taken: list[dict[int, list[list[SampleT]]]] = [{size: [] for size in own} for own in sizes]
    passes = sum(size in rows_by_size for own in sizes for size in own)
    progress = Steps(f"{rounds} rounds of timing", rounds * passes)
    for number in range(rounds):
        gc.collect()
        order = [(number + place) % len(runs) for place in range(len(runs))]
        for size, run in [(size, run) for size in rows_by_size for run in order if size in sizes[run]]:
            timed = rows[: rows_by_size[size]]
            batches = [timed[start : start + size] for start in range(0, len(timed), size)]
            taken[run][size].append(_undisturbed(runs[run], batches, warmup))
            progress.add(1, len(timed))
    return taken


def time_runs(
    runs: Mapping[NameT, Run], rows: Sequence[Encoding], *, rounds: int = ROUNDS, share: float = 1.0
) -> dict[NameT, dict[int, list[float]]]:
    """Time runs as :func:`time_in_rounds` does: seconds of each round by batch size.

    ``share``: part of the usual number of rows that is timed.
    """
    rows_by_size = {size: max(1, round(share * count)) for size, count in TIMED_ROWS.items()}
    taken = time_in_rounds([partial(_seconds, run) for run in runs.values()], rows, rows_by_size, rounds=rounds)
    return {
        name: {size: list(map(sum, samples)) for size, samples in own.items()}
        for name, own in zip(runs, taken, strict=True)
    }


@torch.inference_mode()
def _seconds(run: Run, batch: Sequence[Encoding]) -> float:
    start = time.perf_counter()
    run(batch)
    return time.perf_counter() - start


def _undisturbed(run: Callable[[BatchT], SampleT], batches: Sequence[BatchT], warmup: int) -> list[SampleT]:
    """Run batches without progress and garbage collection, the first ``warmup`` of them once more before."""
    with listening(None):
        for batch in batches[:warmup]:
            run(batch)
        gc.disable()
        try:
            return [run(batch) for batch in batches]
        finally:
            gc.enable()


def speed_ups(taken: Mapping[NameT, Mapping[int, Sequence[float]]], stock: NameT) -> dict[NameT, dict[int, float]]:
    """Return how many times as fast as ``stock`` every run is, by batch size: the median of the ratios of rounds."""
    return {
        name: {
            size: median(ours / its for its, ours in zip(seconds, taken[stock][size], strict=True))
            for size, seconds in by_size.items()
        }
        for name, by_size in taken.items()
    }


def classified(model: MultiExitModel, rule: ExitRule, batch: Sequence[Encoding]) -> object:
    """Answer a batch with exits; answers are on the CPU."""
    return classify_encoded(model, batch, rule, batch_size=len(batch))


def classified_by_stock(stock: Any, model: MultiExitModel, batch: Sequence[Encoding]) -> Tensor:
    """Answer a batch, which ``model`` collates, with a stock classifier: logits on the CPU."""
    return stock(**model.collate(batch).model_inputs).logits.cpu()


def stock_model(name: str, device: torch.device) -> Any:
    """Return the classifier of a folder or hub id as transformers loads it. Raises UserError if it is not there."""
    stock, _ = read_model(resolve(name).path, AutoModelForSequenceClassification)
    return stock.to(device).eval()


def describe_machine(device: torch.device) -> str:
    """Return the GPU, or the processor and the number of threads that torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has none
    name = found.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
