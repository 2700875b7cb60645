"""Training a decoder's exits on response tokens: on cached states of a frozen backbone, or through the backbone.

An LM head costs as much as several layers, so what is trained is counted in steps over tokens drawn at random from
the cached ones, not in epochs over all of them. The loop is :func:`consistentee.training.loop.run_stage`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.data.prompts import TextTask
from consistentee.models.decoder.adapters import StateMoments
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow
from consistentee.traces.token_trace import TokenTrace, compact_dtype, record_tokens
from consistentee.training.decoder.backbone_losses import exit_weights, last_exit_loss, loss_of
from consistentee.training.decoder.backbone_stage import train_backbone
from consistentee.training.decoder.sources import DrawnTokens, StateBatch
from consistentee.training.loop import run_stage, training_device
from consistentee.training.recipe import Target, TokenRecipe
from consistentee.training.stage import Stage

ADAPTERS = "exit_adapters."

_ROWS_TO_START_FROM = 128
_STATES_AT_A_TIME = 4096


def train_exits(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> TokenTrace:
    """Train the stages that methods of generation share; return the trace of the training rows under the trained model.

    The backbone first, if it learns at all, then the exit adapters on the states that it leaves. Both are shared
    through the recipe's store. Before anything learns, exits are given a start in closed form.

    Args:
        model: changed in place.
        task: its training rows are used.
        recipe: what is trained, and how.
    """
    rows = _begin(model, task, recipe)
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
    """Train some of the weights of the trace's model on cached states, for so many steps; there is no dropout.

    Args:
        trace: the states.
        tokens: numbers of those to train on.
        loss: (model, batch) -> scalar.
        recipe: weight decay, schedule, seed and store.
        name, trains, details, shared: see :class:`consistentee.training.stage.Stage`.
        steps, batch_size, learning_rate: how long and how fast; the batch is in tokens.
    """
    if not steps or not len(tokens) or not _has_weights(trace.model, trains):
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


def _has_weights(model: MultiExitDecoder, prefixes: tuple[str, ...]) -> bool:
    """Return whether there is anything to train: a decoder with one exit, the last, has no adapter."""
    return any(name.startswith(prefixes) for name, _ in model.named_parameters())


@torch.no_grad()
def wanted_answers(target: Target, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Return the targets of exits: tokens, int64 [n], or the distribution of the last exit, float [n, vocabulary]."""
    if target == "label":
        return batch.targets
    return model.logits(model.exit_layers[-1], batch.speaking[:, -1]).softmax(dim=-1)


def exit_loss(target: Target, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Return the loss of every exit but the last, weighted by depth."""
    early, wanted = model.exit_layers[:-1], wanted_answers(target, model, batch)
    losses = [
        weight * functional.cross_entropy(model.logits(layer, batch.speaking[:, index]), wanted)
        for index, (layer, weight) in enumerate(zip(early, exit_weights(early), strict=True))
    ]
    return torch.stack(losses).sum()


def train_last_exit(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> None:
    """Fine-tune the stock model on the responses, with the last exit alone. The recipe must let the backbone learn.

    The stage knows nothing of exits: whatever they are, they share it.
    """
    rows = _begin(model, task, recipe)
    train_backbone(model.without_exits(), rows, recipe, last_exit_loss)


def _begin(model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> list[TokenRow]:
    model.to(training_device())
    return recipe.training_rows(model, task)
