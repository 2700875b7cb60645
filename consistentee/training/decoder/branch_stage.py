"""Training branches, exits with a decoder layer of their own, on cached states of whole rows."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.prompts import TextTask
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack
from consistentee.traces.token_trace import RowBatch, record_rows
from consistentee.training.decoder.sources import DrawnRowStates, drawn
from consistentee.training.decoder.stages import train_exits
from consistentee.training.loop import run_stage, training_device
from consistentee.training.recipe import TokenRecipe
from consistentee.training.stage import Stage


def train_branches(
    model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe, spec_at: Callable[[int], BranchSpec]
) -> None:
    """Put a branch on every exit below L, and train all of them together on the distribution of the last exit.

    The backbone and the LM head stay as they are; where the recipe lets the backbone learn, that comes before, in the
    stage that all methods share. States are cached of the rows that are drawn, and of no others.

    Args:
        model: changed in place.
        task: its training rows are used.
        recipe: ``branch_steps`` and what goes with them.
        spec_at: gives the branch of an exit layer.
    """
    if recipe.trains != "exits":
        train_exits(model, task, recipe)
    model.to(training_device())
    for layer in model.exit_layers[:-1]:
        model.add_branch(layer, spec_at(layer))
    rows = [row for row in recipe.training_rows(model, task)[: recipe.traced_rows] if len(row[1])]
    draws = recipe.branch_steps * recipe.branch_batch_size
    if not draws or not rows or not model.branches:
        return
    used = drawn(torch.arange(len(rows)), min(draws, len(rows)), recipe.seed).sort().values.tolist()
    states = record_rows(
        model,
        [rows[number] for number in used],
        batch_size=recipe.trace_batch_size,
        store=recipe.store,
        progress="caching rows" if recipe.progress else None,
    )
    stage: Stage[MultiExitDecoder, RowBatch] = Stage(
        name="branches",
        loss=branch_loss,
        trains=("branches.",),
        epochs=1,
        batch_size=recipe.branch_batch_size,
        learning_rate=recipe.branch_learning_rate,
        head_learning_rate=recipe.branch_learning_rate,
        shared=True,
        dropout=False,
    )
    run_stage(model, DrawnRowStates(states, draws, recipe.seed), stage, recipe.for_loop())


def branch_loss(model: MultiExitDecoder, batch: RowBatch) -> Tensor:
    """Return the cross-entropy of branches with the last exit, mean over response tokens and branches.

    It is KL(last exit || branch) and a constant, the entropy of the last exit.
    """
    gives_response = batch.rows.gives_response
    with torch.no_grad():
        wanted = model.logits(model.num_layers, batch.hidden[:, :, -1][gives_response]).softmax(dim=-1)
    losses = []
    for index, layer in enumerate(model.exit_layers[:-1]):
        said = said_by_branch(model, layer, batch.hidden[:, :, index], batch)
        losses.append(functional.cross_entropy(said, wanted))
    return torch.stack(losses).mean()


def said_by_branch(model: MultiExitDecoder, layer: int, hidden: Tensor, batch: RowBatch) -> Tensor:
    """Return the logits of a branch for the tokens that give the response: [rows, T, width] -> [N, vocabulary]."""
    stack = DecoderStack(model, layer)
    _, context = stack.stepper.begin(batch.rows.tokens, batch.rows.padding_mask)
    state = stack.stepper.step(stack.num_layers, hidden, context)[batch.rows.gives_response]
    return stack.logits(stack.num_layers, state)
