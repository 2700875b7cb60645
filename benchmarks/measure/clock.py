"""Take the time of a batch: of a method, or of the stock model.

In decoding, prompts and generated tokens are timed apart; texts end where they end in use, so the time of a decoded
token is compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from consistentee.engine.speculation import stock_generate
from consistentee.engine.transcript import clock
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

Row = TypeVar("Row")
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


def timed(run: Callable[[Sequence[Row]], Answer], batch: Sequence[Row], device: torch.device) -> tuple[float, Answer]:
    """Time a batch, with all work of its device, and return seconds and answer."""
    start = clock(device)
    answer = run(batch)
    return clock(device) - start, answer


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
