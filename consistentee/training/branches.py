"""Train branches, exits with a decoder layer of their own, on the cached states of whole rows.

Their stage ends when the loss on rows of the validation split has not fallen for :data:`PATIENCE` epochs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from consistentee.data.tasks import TextTask
from consistentee.files import hash_tensors
from consistentee.models.base import chosen_device
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.traces.token_trace import (
    TokenRow,
    TokenRows,
    collate_rows,
    compact_dtype,
    recorded_states,
    tokens_read,
)
from consistentee.training.decoder import rows_as_long, train_exits, training_rows
from consistentee.training.loop import Source, Stage, count_rows, run_stage
from consistentee.training.recipe import TokenRecipe

PATIENCE = 2
VALIDATION_ROWS = 64

_ROWS_AT_A_TIME = 8


class RowBatch(NamedTuple):
    """Whole rows, padded on the right, on the model's device.

    Attributes:
        rows: the tokens, and which of them give the response.
        hidden: hidden states after the exit layers: float32 [rows, T, exits, width]; 0 for padding.
    """

    rows: TokenRows
    hidden: Tensor


@dataclass(frozen=True)
class RowStates(Source):
    """The hidden states of whole rows, prompts included, for exits that attend to earlier tokens.

    Attributes:
        rows: prompts and responses.
        hidden: of every token that is read, row by row: float16 or float32, [tokens, exits, width].
        model: whose states they are.
    """

    rows: Sequence[TokenRow]
    hidden: Tensor
    model: MultiExitDecoder = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, step: int = 0) -> RowBatch:
        numbers = rows.tolist()
        batch = collate_rows(self.model, [self.rows[number] for number in numbers])
        hidden = pad_sequence([self._by_row[number] for number in numbers], batch_first=True)
        return RowBatch(batch, hidden.to(self.model.device, torch.get_default_dtype()))

    @cached_property
    def _by_row(self) -> tuple[Tensor, ...]:
        return self.hidden.split([tokens_read(row) for row in self.rows])

    def fingerprint(self) -> str:
        tokens = torch.tensor([token for prompt, response in self.rows for token in (*prompt, *response)])
        lengths = torch.tensor([[len(prompt), len(response)] for prompt, response in self.rows])
        return hash_tensors({"hidden": self.hidden, "tokens": tokens, "lengths": lengths})


@dataclass(frozen=True)
class ValidationLoss:
    """Minus the loss of branches on rows that they do not learn from: a score, which rises."""

    states: RowStates

    @torch.no_grad()
    def __call__(self) -> float:
        losses, tokens = [], []
        for rows in torch.arange(len(self.states)).split(_ROWS_AT_A_TIME):
            batch = self.states.batch(rows)
            losses.append(branch_loss(self.states.model, batch).item())
            tokens.append(len(batch.rows.targets))
        return -fmean(losses, tokens)

    def fingerprint(self) -> str:
        return self.states.fingerprint()


def train_branches(
    model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe, spec_at: Callable[[int], BranchSpec]
) -> None:
    """Add a branch, an exit with a decoder layer of its own, to every exit below L, and train all together.

    They learn the distribution of the last exit, on cached states of whole rows, for at most the recipe's
    ``branch_steps``, rounded up to whole epochs. Backbone and LM head are frozen; if the recipe trains the backbone,
    that comes before, in the stage that all methods share. ``spec_at`` gives the branch of an exit layer.
    """
    if recipe.trains != "exits":
        train_exits(model, task, recipe)
    model.to(chosen_device())
    for layer in model.exit_layers[:-1]:
        model.add_branch(layer, spec_at(layer))
    rows = _with_response(training_rows(model, task, recipe)[: recipe.traced_rows])
    rows = rows[: recipe.branch_steps * recipe.branch_batch_size]
    held_out = _with_response(rows_as_long(model, task, task.validation.capped(VALIDATION_ROWS, seed=0)))
    if not rows or not held_out or not model.branches:
        return
    count_rows(len(rows), with_gradients=False)
    record = partial(recorded_states, model, whole_rows=True, dtype=compact_dtype(model), store=recipe.store)
    states, validation = (RowStates(some, record(some), model) for some in (rows, held_out))
    stage = Stage(
        name="branches",
        loss=branch_loss,
        trains=("branches.",),
        epochs=math.ceil(recipe.branch_steps / math.ceil(len(rows) / recipe.branch_batch_size)),
        batch_size=recipe.branch_batch_size,
        learning_rate=recipe.branch_learning_rate,
        shared=True,
        dropout=False,
        judge=ValidationLoss(validation),
        patience=PATIENCE,
    )
    run_stage(model, states, stage, recipe)


def _with_response(rows: Sequence[TokenRow]) -> list[TokenRow]:
    return [row for row in rows if len(row[1])]


def branch_loss(model: MultiExitDecoder, batch: RowBatch) -> Tensor:
    """Compute the cross-entropy of branches with the last exit, mean over response tokens and branches.

    It is KL(last exit || branch) plus a constant, the entropy of the last exit.
    """
    gives_response = batch.rows.gives_response
    with torch.no_grad():
        wanted = model.logits(model.num_layers, batch.hidden[:, :, -1][gives_response]).softmax(dim=-1)
    losses = [
        functional.cross_entropy(branch_logits(model, layer, batch.hidden[:, :, index], batch), wanted)
        for index, layer in enumerate(model.exit_layers[:-1])
    ]
    return torch.stack(losses).mean()


def branch_logits(model: MultiExitDecoder, layer: int, hidden: Tensor, batch: RowBatch) -> Tensor:
    """Compute the logits of a branch for the tokens before a response's: [rows, T, width] -> [N, vocabulary]."""
    stack = DecoderStack(model, layer)
    _, context = stack.stepper.begin(batch.rows.tokens, batch.rows.padding_mask)
    state = stack.stepper.step(stack.num_layers, hidden, context)[batch.rows.gives_response]
    return stack.logits(stack.num_layers, state)
