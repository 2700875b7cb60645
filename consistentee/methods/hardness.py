"""The Memorized Layer: from which layer on a row is answered right for good (ConsistentEE, section 3.3)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.view import predictions_of
from consistentee.traces.instance_trace import record_logits
from consistentee.training.recipe import Recipe
from consistentee.training.sources import TokenSource
from consistentee.training.stages import train_jointly_on


def memorized_layer(correct: Tensor) -> Tensor:
    """Return the smallest layer from which on every classifier is right, and L where the last one is wrong.

    Args:
        correct: bool [rows, L].

    Returns:
        int64 [rows], 1-based.
    """
    layers = correct.shape[1]
    right_to_the_end = correct.flip(dims=[1]).long().cumprod(dim=1).sum(dim=1)
    return (layers - right_to_the_end + 1).clamp(max=layers)


def memorized_layer_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the Memorized Layer int64 [rows] from logits [rows, L, classes] and labels [rows]."""
    return memorized_layer(predictions_of(logits) == labels.unsqueeze(1))


def cross_fitted_memorized_layer(model: MultiExitModel, source: TokenSource, recipe: Recipe, folds: int) -> Tensor:
    """Return the Memorized Layer of every training row, from models that have not seen the row.

    On rows that a model was trained on, nearly every row is memorized at layer 1, because the model has fitted it.
    Here the training rows are cut into ``folds`` parts, and each part is judged by a model that starts from the same
    weights and was trained (stage 1) on the other parts. ``model`` is left as it was.
    """
    return cross_fitted(model, source, recipe, folds=folds, train=train_jointly_on, judge=_memorized_layer_of_rows)


def cross_fitted(
    model: MultiExitModel,
    source: TokenSource,
    recipe: Recipe,
    *,
    folds: int,
    train: Callable[[MultiExitModel, TokenSource, Recipe], None],
    judge: Callable[[MultiExitModel, TokenSource], Tensor],
) -> Tensor:
    """Return what models that have not seen a row say of it, for every training row: [rows].

    Args:
        model: gives the weights that every fold starts from, and is left as it was.
        source: the training rows, which are cut into ``folds`` parts.
        recipe: how to train.
        folds: number of parts, and of models.
        train: trains the model, in place, on the other parts.
        judge: returns one number for each row of the part held out: [rows].
    """
    start = model.clone_weights()
    fold_of_row = torch.arange(len(source)) % folds
    fold_of_row = fold_of_row[torch.randperm(len(source), generator=torch.Generator().manual_seed(recipe.seed))]
    held_out_rows, verdicts = [], []
    for fold in range(folds):
        held_out = (fold_of_row == fold).nonzero().flatten()
        seen = (fold_of_row != fold).nonzero().flatten()
        model.load_state_dict(start)
        train(model, source.select(seen), replace(recipe, max_rows=None))
        held_out_rows.append(held_out)
        verdicts.append(judge(model, source.select(held_out)))
    model.load_state_dict(start)
    return torch.cat(verdicts)[torch.cat(held_out_rows).argsort()]


def _memorized_layer_of_rows(model: MultiExitModel, rows: TokenSource) -> Tensor:
    return memorized_layer_of(record_logits(model, rows.encodings), rows.labels)
