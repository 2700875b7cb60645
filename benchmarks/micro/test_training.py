"""Training: rows a second of the shared stages against a plain loop, on rows as long as those of SST-2 and MRPC."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import in_rounds, report
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from consistentee.data.encoding import Encoding
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.training.precision import precision_used
from consistentee.training.recipe import Recipe
from consistentee.training.sources import TokenSource
from consistentee.training.stages import (
    depth_weighted_loss,
    layer_losses,
    train_jointly_on,
    train_last_exit_on,
)

BATCH, STEPS = 32, 4
RECIPE = Recipe(epochs=1, batch_size=BATCH, precision="auto")
ROUNDS = 3


class RandomRows(TokenSource):
    """Random tokens."""

    def __init__(self, model: MultiExitModel, mean_length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(mean_length - 3, mean_length + 4, (BATCH * STEPS,), generator=generator).tolist()
        words = [torch.randint(1000, 10_000, (length,), generator=generator).tolist() for length in lengths]
        super().__init__(model, [Encoding(row, [0] * len(row)) for row in words], torch.arange(BATCH * STEPS) % 2)


def joint_loss(model: MultiExitModel, source: TokenSource, rows: torch.Tensor) -> torch.Tensor:
    """Return the depth-weighted loss of all exits on some rows: a scalar."""
    batch = source.batch(rows, 0)
    return depth_weighted_loss(layer_losses(model(batch.tokens).logits, batch.labels))


def last_exit_loss(model: MultiExitModel, source: TokenSource, rows: torch.Tensor) -> torch.Tensor:
    """Return the stock model's loss on some rows: a scalar."""
    batch = source.batch(rows, 0)
    return layer_losses(model.stock_logits(batch.tokens).unsqueeze(1), batch.labels).mean()


def train_plainly(model: MultiExitModel, source: TokenSource, loss: Callable[..., torch.Tensor]) -> None:
    """Train as anyone would write it down: all weights in float32, by torch's defaults."""
    optimizer = AdamW(model.parameters(), lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, fused=True)
    model.train()
    for rows in torch.arange(len(source)).split(BATCH):
        loss(model, source, rows).backward()
        clip_grad_norm_(list(model.parameters()), RECIPE.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, so that CPU time is what it would take on a machine with nothing else to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time that a call takes, in seconds over all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


STAGES = {"joint": (train_jointly_on, joint_loss), "last exit": (train_last_exit_on, last_exit_loss)}
MEAN_LENGTHS = {"sst2": 13, "mrpc": 53}


@pytest.mark.parametrize("task", MEAN_LENGTHS)
@pytest.mark.parametrize("stage", STAGES)
def test_rows_a_second_against_a_plain_loop(request, model, task, stage):
    """In turns, on the CPU."""
    source = RandomRows(model, MEAN_LENGTHS[task])
    train, loss = STAGES[stage]
    with one_thread():
        chosen = precision_used("auto", model.device)
        taken = in_rounds(
            lambda: cpu_seconds(lambda: train_plainly(model, source, loss)),
            lambda: cpu_seconds(lambda: train(model, source, replace(RECIPE, precision="float32"))),
            lambda: cpu_seconds(lambda: train(model, source, RECIPE)),
            rounds=ROUNDS,
        )
    plain, float32, auto = (len(source) / statistics.median(times) for times in taken)
    ratio = statistics.median(before / after for before, after in zip(taken[0], taken[2], strict=True))
    report(
        request,
        f"{task}, {stage} stage, rows a CPU second: plain {plain:.0f}, float32 {float32:.0f}, auto {auto:.0f} "
        f"({chosen}); auto / plain: {ratio:.2f} (at least 0.95: the same work where auto is float32)",
    )
    assert ratio >= 0.95
