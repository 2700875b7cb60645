"""Stages of generation that several methods share: exits, learned heads and branches of a decoder.

An LM head costs as much as several layers, so stages are counted in steps over tokens drawn at random from cached
states of a frozen backbone, not in epochs over all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.prompts import TextTask
from consistentee.models.base import chosen_device
from consistentee.models.decoder.adapters import StateMoments
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack
from consistentee.traces.token_rows import TokenRow
from consistentee.traces.token_trace import RowBatch, TokenTrace, compact_dtype, record_rows, record_tokens
from consistentee.training.decoder_backbone import exit_weights, last_exit_loss, loss_of, train_backbone
from consistentee.training.loop import run_stage
from consistentee.training.recipe import Target, TokenRecipe, drawn
from consistentee.training.stage import Stage
from consistentee.training.token_sources import DrawnRowStates, DrawnTokens, StateBatch

ADAPTERS = "exit_adapters."

_ROWS_TO_START_FROM = 128
_STATES_AT_A_TIME = 4096


def train_exits(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> TokenTrace:
    """Train the stages that methods of generation share; return the trace of the training rows under the trained model.

    The backbone first, if the recipe trains it, then the exit adapters on its states. Both are shared through the
    recipe's store. Before, exits get a start in closed form.
    """
    model.to(chosen_device())
    rows = recipe.training_rows(model, task)
    if recipe.trains != "exits":
        if model.exits_have_weights:
            _start_exits(cached_states(model, rows[:_ROWS_TO_START_FROM], recipe), recipe)
        train_backbone(model, rows, recipe, loss_of(recipe), also_trains=(ADAPTERS,))
    trace = cached_states(model, rows[: recipe.traced_rows], recipe)
    if recipe.trains == "exits":
        _start_exits(trace, recipe)
    train_on_states(
        trace,
        trace.may_exit,
        partial(exit_loss, recipe.target),
        recipe,
        name="exits",
        trains=(ADAPTERS,),
        steps=recipe.exit_steps,
        batch_size=recipe.exit_batch_size,
        learning_rate=recipe.exit_learning_rate,
        details={"target": recipe.target},
        shared=True,
    )
    return trace


def train_last_token_exit(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> None:
    """Fine-tune the stock model on the responses, with the last exit alone. The recipe must train the backbone.

    The stage does not depend on the kind of the exits, so that all kinds share it.
    """
    model.to(chosen_device())
    train_backbone(model.without_exits(), recipe.training_rows(model, task), recipe, last_exit_loss)


def cached_states(model: MultiExitDecoder, rows: Sequence[TokenRow], recipe: TokenRecipe) -> TokenTrace:
    """Record the states of some rows at the exits, in float16 (float64 if the model is), and keep them in the store."""
    return record_tokens(
        model,
        rows,
        batch_size=recipe.trace_batch_size,
        dtype=compact_dtype(model),
        store=recipe.store,
        progress="caching states" if recipe.progress else None,
    )


@torch.no_grad()
def _start_exits(trace: TokenTrace, recipe: TokenRecipe) -> None:
    """Set every exit below L to the least-squares map of its states onto those of layer L, if so configured."""
    model, tokens = trace.model, recipe.tokens_for_heads(trace)
    if recipe.exit_start == "stock" or not len(tokens):
        return
    for index, layer in enumerate(model.exit_layers[:-1]):
        moments = StateMoments.zero(model.backbone.lm_head.weight)
        for chunk in tokens.split(_STATES_AT_A_TIME):
            moments = moments.plus(*(model.state(trace.states(exit_index, chunk)) for exit_index in (index, -1)))
        model.adapter(layer).start_from(moments)


@torch.no_grad()
def wanted_answers(target: Target, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Return the targets of exits: tokens, int64 [n], or the distribution of the last exit, float [n, vocabulary]."""
    if target == "label":
        return batch.targets
    return model.logits(model.exit_layers[-1], batch.speaking[:, -1]).softmax(dim=-1)


def exit_loss(target: Target, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Compute the mean loss of every exit but the last, weighted by depth."""
    early, wanted = model.exit_layers[:-1], wanted_answers(target, model, batch)
    losses = [
        weight * functional.cross_entropy(model.logits(layer, batch.speaking[:, index]), wanted)
        for index, (layer, weight) in enumerate(zip(early, exit_weights(early), strict=True))
    ]
    return torch.stack(losses).sum()


def train_on_states(
    trace: TokenTrace,
    tokens: Tensor,
    loss: Callable[[MultiExitDecoder, StateBatch], Tensor],
    recipe: TokenRecipe,
    *,
    name: str,
    trains: tuple[str, ...],
    steps: int,
    batch_size: int,
    learning_rate: float,
    details: Mapping[str, object] | None = None,
    shared: bool = False,
) -> None:
    """Train some of the weights of the trace's model on cached states, for some steps, without dropout.

    Nothing happens if there is nothing to train: a decoder with one exit, the last, has no adapter.

    ``tokens`` are the numbers of those to train on; the batch is in tokens. ``name``, ``trains``, ``details`` and
    ``shared``: see :class:`consistentee.training.stage.Stage`.
    """
    has_weights = any(weight.startswith(trains) for weight, _ in trace.model.named_parameters())
    if not steps or not len(tokens) or not has_weights:
        return
    stage: Stage[MultiExitDecoder, StateBatch] = Stage(
        name=name,
        loss=loss,
        trains=trains,
        epochs=1,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_learning_rate=learning_rate,
        details=details or {},
        shared=shared,
        dropout=False,
    )
    source = DrawnTokens(trace, tokens, steps * batch_size, recipe.seed)
    run_stage(trace.model, source, stage, recipe.for_loop())


def train_learned_head(
    trace: TokenTrace,
    tokens: Tensor,
    loss: Callable[[MultiExitDecoder, StateBatch], Tensor],
    recipe: TokenRecipe,
    *,
    head: str,
    details: Mapping[str, object] | None = None,
) -> None:
    """Train a learned head of the trace's model on cached states, by the recipe."""
    train_on_states(
        trace,
        tokens,
        loss,
        recipe,
        name=head,
        trains=(f"exit_heads.{head}.",),
        steps=recipe.head_steps,
        batch_size=recipe.head_batch_size,
        learning_rate=recipe.head_learning_rate,
        details=details,
    )


def train_branches(
    model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe, spec_at: Callable[[int], BranchSpec]
) -> None:
    """Add a branch, an exit with a decoder layer of its own, to every exit below L, and train all together.

    They learn the distribution of the last exit, on cached states of whole rows. Backbone and LM head are frozen; if
    the recipe trains the backbone, that comes before, in the stage that all methods share.
    ``spec_at`` gives the branch of an exit layer.
    """
    if recipe.trains != "exits":
        train_exits(model, task, recipe)
    model.to(chosen_device())
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
