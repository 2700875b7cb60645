"""The Memorized Layer: the first from which on all classifiers answer a row correctly (ConsistentEE, section 3.3)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.view import predictions_of
from consistentee.traces.instance_trace import record_logits
from consistentee.training.encoder import TokenSource, train_jointly_on
from consistentee.training.recipe import Recipe


def memorized_layer(correct: Tensor) -> Tensor:
    """Compute the first layer from which on every classifier is right, or L: bool [rows, L] -> int64 [rows], from 1."""
    layers = correct.shape[1]
    right_to_the_end = correct.flip(dims=[1]).long().cumprod(dim=1).sum(dim=1)
    return (layers - right_to_the_end + 1).clamp(max=layers)


def memorized_layer_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the Memorized Layer int64 [rows] from logits [rows, L, classes] and labels [rows]."""
    return memorized_layer(predictions_of(logits) == labels.unsqueeze(1))


def cross_fitted_memorized_layer(model: MultiExitModel, source: TokenSource, recipe: Recipe, folds: int) -> Tensor:
    """Compute the Memorized Layer of every training row with models that were not trained on the row.

    A model has fitted its training rows, so nearly all of them would be memorized at layer 1. ``model`` keeps its
    weights.
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
    """Judge every training row with a model that was trained on the other folds: [rows].

    Every fold starts from the weights of ``model``, which it has again afterwards. ``train`` trains it in place on the
    other folds; ``judge`` returns one number for each held-out row.
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
