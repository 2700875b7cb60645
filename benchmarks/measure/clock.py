"""Time methods and the stock model in interleaved rounds, batch by batch, in a process that does nothing else.

Rows are in the order of the data. Everything is timed once a round, in rotating order, so that drift of the machine
affects all alike. All samples are kept. In decoding, prompts and generated tokens are timed apart; texts end where they
end in use, so the time of a decoded token is compared.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.specs.base import TimingSpec
from consistentee.deployment.timing import undisturbed
from consistentee.engine.speculation import stock_generate
from consistentee.engine.transcript import clock
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import Steps

Row = TypeVar("Row")
Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class BatchTimes:
    """Times of one batch.

    Attributes:
        seconds, units, layer_calls: seconds, number and layers of its rows; in decoding of all tokens after the first.
        prefill_seconds: for the prompts and the first new tokens.
        head_seconds: of decoding, for embedding and LM head, if measured.
        completed: seconds until each text ended, if recorded; the same for all texts of stock ``generate``.
    """

    seconds: float
    units: int
    layer_calls: float
    prefill_seconds: float | None = None
    head_seconds: float | None = None
    completed: list[float] | None = None


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
            timed_rows = rows[: protocol.rows_at(size)]
            batches = [timed_rows[start : start + size] for start in range(0, len(timed_rows), size)]
            taken[contender][size].append(undisturbed(contenders[contender], batches, protocol.warmup_batches))
            progress.add(1, len(timed_rows))
    return taken


def timed(run: Callable[[Sequence[Row]], Answer], batch: Sequence[Row], device: torch.device) -> tuple[float, Answer]:
    """Time a batch, with all work of its device, and return seconds and answer."""
    start = clock(device)
    answer = run(batch)
    return clock(device) - start, answer


# ---------------------------------------------------------------------------------------------- decoding


def stock_times(model: MultiExitDecoder, rows: Sequence[Sequence[int]], length: int) -> BatchTimes:
    """Time the stock model's own greedy ``generate`` on tokenised prompts, ``length`` new tokens at most."""
    prompts = list(map(torch.tensor, rows))
    tokens = pad_sequence(prompts, batch_first=True, padding_value=model.pad_id, padding_side="left").to(model.device)
    mask = pad_sequence(list(map(torch.ones_like, prompts)), batch_first=True, padding_side="left").to(model.device)
    written, prefill_seconds, seconds = stock_generate(model, tokens, mask, length)
    steps, ends = written.shape[1] - 1, model.end_tokens
    texts = written.tolist()
    decoded = sum(next((place for place, token in enumerate(text) if token in ends), steps) for text in texts)
    return BatchTimes(
        seconds=seconds,
        units=decoded,
        layer_calls=float(decoded * model.num_layers),
        prefill_seconds=prefill_seconds,
        head_seconds=head_seconds(model, len(rows), steps),
        completed=[prefill_seconds + seconds] * len(rows),
    )


@torch.inference_mode()
def head_seconds(model: MultiExitDecoder, rows: int, steps: int) -> float:
    """Time what no exit saves of decoding: embedding, final norm, LM head, argmax, ``steps`` times."""
    tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
    start = clock(model.device)
    for _ in range(steps):
        model.logits(model.num_layers, model.stepper.embed(tokens, tokens)[:, 0]).argmax(dim=-1)
    return clock(model.device) - start
