"""Time ways of answering the same rows against each other, in interleaved rounds on this machine."""

import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
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
BatchT = TypeVar("BatchT")
SampleT = TypeVar("SampleT")

Run = Callable[[Sequence[Encoding]], object]
"""Answer one batch of tokenised rows."""

BATCH_SIZES = (1, 32)
ROUNDS = 5
TIMED_ROWS = {1: 48, 32: 256}
"""Rows that are timed in a round, by batch size."""

_WARMUP = 2


def time_runs(
    runs: Mapping[NameT, Run], rows: Sequence[Encoding], *, rounds: int = ROUNDS, share: float = 1.0
) -> dict[NameT, dict[int, list[float]]]:
    """Time every run once a round, in rotating order, on the same rows: seconds of each round by batch size.

    ``share``: part of the usual number of rows that is timed. Ratios are to be taken within rounds, so that a drift of
    the machine affects all runs alike.
    """
    taken: dict[NameT, dict[int, list[float]]] = {name: {size: [] for size in BATCH_SIZES} for name in runs}
    names = list(runs)
    progress = Steps("timing", rounds * len(BATCH_SIZES) * len(names))
    for number in range(rounds):
        start = number % len(names)
        for size in BATCH_SIZES:
            timed = rows[: max(1, round(share * TIMED_ROWS[size]))]
            batches = [timed[first : first + size] for first in range(0, len(timed), size)]
            for name in names[start:] + names[:start]:
                gc.collect()
                taken[name][size].append(sum(undisturbed(partial(_seconds, runs[name]), batches, _WARMUP)))
                progress.add(1, len(timed))
    return taken


@torch.inference_mode()
def _seconds(run: Run, batch: Sequence[Encoding]) -> float:
    start = time.perf_counter()
    run(batch)
    return time.perf_counter() - start


def undisturbed(run: Callable[[BatchT], SampleT], batches: Sequence[BatchT], warmup: int) -> list[SampleT]:
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
