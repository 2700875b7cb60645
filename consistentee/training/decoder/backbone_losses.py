"""Losses of a decoder's backbone: cross-entropies of the exits on response tokens.

One loss, a weighted mean of the exits' cross-entropies through the LM head, is that of several papers:

* weights in proportion to depth: CALM (Schuster et al., 2022, arXiv 2207.07061, section 3.4);
* the same weight for every exit: LITE (Varshney et al., 2024, arXiv 2310.18581), and sorted fine-tuning (SoFT,
  Kavehzadeh et al., 2024, arXiv 2309.08968), whose "sub-models" are the first layers with the one norm and LM head. The
  two differ in exits, data and length, not in the loss;
* weights that grow with the square of depth, layer dropout, and a curriculum of exits: LayerSkip (Elhoushi et al.,
  2024, arXiv 2404.16710, section 4.1). With the curriculum "rotational" one exit learns at a step beside the last, each
  in turn; with "gradual" exits join one by one, from the deepest to the shallowest, until half of the steps are done.
  Its schedule of the dropout over time is for training from scratch and is left out, as the paper does in fine-tuning.

Where exits are drawn, a token learns at one of them, see :mod:`consistentee.training.decoder.drawn_exits`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.decoder.drawn_exits import drawn_exits_loss
from consistentee.training.decoder.head_loss import probabilities, weighted_cross_entropy
from consistentee.training.decoder.sources import StepRows
from consistentee.training.recipe import ExitCurriculum, ExitWeights, TokenRecipe

RowsLoss = Callable[[MultiExitDecoder, StepRows], Tensor]
"""A loss that runs the backbone: (model, rows of a step) -> scalar."""

_POWERS: dict[ExitWeights, int] = {"equal": 0, "depth": 1, "squared depth": 2}


@dataclass(frozen=True)
class ExitLosses:
    """Which exits learn, and what each one's loss weighs: see :class:`consistentee.TokenRecipe`."""

    weights: ExitWeights
    curriculum: ExitCurriculum
    layer_dropout: float

    @classmethod
    def of(cls, recipe: TokenRecipe) -> "ExitLosses":
        """Return what a recipe asks for."""
        return cls(recipe.exit_weights, recipe.exit_curriculum, recipe.layer_dropout)

    def weights_at(self, exit_layers: Sequence[int], step: int, done: float) -> Tensor:
        """Return the weight of each exit at one step, of which the share ``done`` is over: [exits], their sum is 1."""
        weights = torch.tensor(exit_weights(exit_layers, _POWERS[self.weights]))
        early = len(exit_layers) - 1
        if self.curriculum == "rotational" and early:
            weights[:-1] *= torch.arange(early) == step % early
        elif self.curriculum == "gradual":
            weights[: max(early - int(done * 2 * (early + 1)), 0)] = 0.0
        return weights / weights.sum()


def exit_weights(exit_layers: Sequence[int], power: int = 1) -> list[float]:
    """Return the weight of each exit in a joint loss, in proportion to a power of its depth; their sum is 1."""
    weights = [layer**power for layer in exit_layers]
    return [weight / sum(weights) for weight in weights]


def loss_of(recipe: TokenRecipe) -> RowsLoss:
    """Return the loss of all exits that a recipe asks for.

    Raises UserError for drawn exits with a teacher, who is at no token's exit but the last, or layer dropout.
    """
    losses = ExitLosses.of(recipe)
    if recipe.exit_curriculum == "drawn":
        if recipe.taught_share or recipe.layer_dropout:
            raise UserError(
                "drawn exits have no teacher, and skip layers as it is: leave taught_share and layer_dropout at 0"
            )
        return partial(drawn_loss, losses)
    return partial(taught_loss, recipe.taught_share, losses) if recipe.taught_share else partial(joint_loss, losses)


def drawn_loss(losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Return the mean cross-entropy of tokens at exits that are drawn by their weights; through the backbone."""
    return drawn_exits_loss(losses.weights_at(model.exit_layers, batch.number, batch.done), model, batch)


def joint_loss(losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Return the weighted mean cross-entropy of the exits, the last one included; through the backbone."""
    states, shares = _states_and_shares(losses, model, batch)
    return loss_at_exits(model, states, batch.targets, shares)


def taught_loss(taught_share: float, losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Return the same mean; exits below L learn this share from the distribution of layer L, and the rest from labels.

    Layer L teaches while it learns labels, and feels nothing of its pupils but through the layers that they share
    (self-distillation: Zhang et al., "Be Your Own Teacher", 2019, arXiv 1905.08094, section 3).
    """
    states, shares = _states_and_shares(losses, model, batch)
    last = model.exit_layers[-1]
    wanted = probabilities(model.head_state(last, states[:, -1]).detach(), model.head_weight(last), model.precision)
    wanted.mul_(taught_share)
    wanted.scatter_add_(1, batch.targets.unsqueeze(1), wanted.new_full((len(wanted), 1), 1 - taught_share))
    of_last = torch.zeros_like(shares)
    of_last[:, -1] = shares[:, -1]
    return loss_at_exits(model, states, batch.targets, of_last) + loss_at_exits(model, states, wanted, shares - of_last)


def _states_and_shares(losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> tuple[Tensor, Tensor]:
    """Return the states that give response tokens, [tokens, exits, width], and what each one's loss weighs."""
    if losses.layer_dropout:
        states = states_with_layer_dropout(model, batch, losses.layer_dropout)
    else:
        states = model.exit_states(batch.tokens, batch.padding_mask, batch.may_exit).speaking
    weights = losses.weights_at(model.exit_layers, batch.number, batch.done).to(states)
    return states[batch.gives_response], weights.expand(len(batch.targets), -1) / len(batch.targets)


def last_exit_loss(model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Return the cross-entropy of the last exit: what a model without exits is fine-tuned on."""
    states = model.last_states(batch.tokens, batch.padding_mask)[batch.gives_response]
    last, shares = model.exit_layers[-1], states.new_full((len(states),), 1 / len(states))
    read = model.head_state(last, states)
    return weighted_cross_entropy(read, model.head_weight(last), batch.targets, shares, model.precision)


def loss_at_exits(model: MultiExitDecoder, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_ie weights_ie * CE_ie`` over tokens i and exits e, a scalar.

    Args:
        model: whose exits they are; its precision is that of the LM head's products.
        hidden: hidden states at the exits: [tokens, exits, width].
        targets: int64 [tokens], or distributions, [tokens, vocabulary].
        weights: [tokens, exits]. An exit whose weights are all 0 is not run.
    """
    used = weights.any(dim=0).tolist()
    exits = [(index, layer) for index, layer in enumerate(model.exit_layers) if used[index]]
    if not exits:
        return hidden.new_zeros(())
    read = [model.head_state(layer, hidden[:, index]) for index, layer in exits]
    weighs = [weights[:, index] for index, _ in exits]
    if model.shares_head and targets.dim() == 1:  # one pass over its gradient for all exits
        head, said = model.backbone.lm_head.weight, targets.repeat(len(exits))
        return weighted_cross_entropy(torch.cat(read), head, said, torch.cat(weighs), model.precision)
    losses = [
        weighted_cross_entropy(states, model.head_weight(layer), targets, weight, model.precision)
        for (_, layer), states, weight in zip(exits, read, weighs, strict=True)
    ]
    return torch.stack(losses).sum()


def skip_probability(layer: int, num_layers: int, dropout: float) -> float:
    """Return the probability that a row skips a layer in training: 0 at layer 1, ``dropout`` at layer L."""
    return dropout * (math.exp((layer - 1) * math.log(2) / max(num_layers - 1, 1)) - 1)


def states_with_layer_dropout(model: MultiExitDecoder, batch: StepRows, dropout: float) -> Tensor:
    """Run all layers, each row skipping some at random: hidden states [rows, tokens, exits, width].

    Raises UserError where there are closing layers: exits skip layers there as it is.
    """
    if model.closing:
        raise UserError("layer dropout and closing layers cannot be had together: set layer_dropout to 0")
    hidden, context = model.stepper.begin(batch.tokens, batch.padding_mask)
    states = []
    for layer in range(1, model.num_layers + 1):
        skips = torch.rand(len(hidden), 1, 1, device=hidden.device) < skip_probability(layer, model.num_layers, dropout)
        hidden = torch.where(skips, hidden, model.run_layer(layer, hidden, context))
        if layer in model.exit_layers:
            states.append(hidden)
    return torch.stack(states, dim=2)
