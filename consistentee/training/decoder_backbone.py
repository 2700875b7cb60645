"""Train a decoder's backbone with its exits: losses of the exits on response tokens, and the stage.

One loss, a weighted mean of the exits' cross-entropies through the LM head, is that of several papers:

* weights in proportion to depth: CALM (Schuster et al., 2022, arXiv 2207.07061, section 3.4);
* equal weights: LITE (Varshney et al., 2024, arXiv 2310.18581), and sorted fine-tuning (SoFT, Kavehzadeh et al.,
  2024, arXiv 2309.08968), whose "sub-models" are the first layers with the one norm and LM head. The two differ in
  exits, data and length, not in the loss;
* weights in proportion to the square of depth, layer dropout, and a curriculum of exits: LayerSkip (Elhoushi et al.,
  2024, arXiv 2404.16710, section 4.1). With the curriculum "rotational" one exit learns at a step besides the last,
  each in turn; with "gradual" exits join one by one, from the deepest to the shallowest, until half of the steps are
  done. Its schedule of the dropout over time is for training from scratch and is left out, as in its fine-tuning.

With "drawn" exits, every token of a response exits at a random exit and learns there, in a pass that computes what
decoding computes. The other losses only show texts that exit at one layer as a whole. Under a rule, a later token that
runs deeper reads keys and values that skipped layers got from the state at an exit (state propagation: CALM, section
3.3.1). A token then needs the LM head once, not once for each exit.

The stage takes hours where the others take minutes. It is shared by all methods that need the same one, and resumes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRow
from consistentee.training.head_loss import probabilities, weighted_cross_entropy
from consistentee.training.loop import run_stage
from consistentee.training.recipe import ExitCurriculum, ExitWeights, TokenRecipe
from consistentee.training.stage import Stage
from consistentee.training.token_sources import DrawnRows, StepRows

RowsLoss = Callable[[MultiExitDecoder, StepRows], Tensor]
"""A loss that runs the backbone: (model, rows of a step) -> scalar."""

ONE_EXIT_A_ROW = 0.5
"""Share of the rows whose tokens all exit at the same layer, as under a static rule."""

_POWERS: dict[ExitWeights, int] = {"equal": 0, "depth": 1, "squared depth": 2}
_SEEDS_APART = 10_000  # of the rows that runs of one stage draw; suites have fewer seeds


def train_backbone(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    recipe: TokenRecipe,
    loss: RowsLoss,
    *,
    name: str = "backbone",
    also_trains: tuple[str, ...] = (),
) -> None:
    """Train the backbone by ``recipe.trains``, which must not be "exits"; the model keeps stock layers.

    Settings of a loss that is a partial are part of the stage's key. ``also_trains``: prefixes of the names of other
    weights to train, at the rate of exits.
    """
    backbone: tuple[str, ...] = ("backbone.",)
    if recipe.trains == "lora":
        model.add_lora(recipe.lora_rank, seed=recipe.seed)
        backbone = model.lora_weights
    stage: Stage[MultiExitDecoder, StepRows] = Stage(
        name=f"{name}-{recipe.trains}",
        loss=loss,
        trains=(*backbone, *also_trains),
        epochs=1,
        batch_size=recipe.backbone_batch_size,
        learning_rate=recipe.backbone_learning_rate,
        head_learning_rate=recipe.exit_learning_rate,
        details=_settings_of(loss),
        shared=True,
    )
    for run in range(1 + recipe.backbone_restarts):
        seed = recipe.seed + run * _SEEDS_APART
        source = DrawnRows(model, rows, recipe.backbone_steps, recipe.backbone_batch_size, seed)
        run_stage(model, source, stage, recipe.for_loop())
    if recipe.trains == "lora":
        model.merge_lora()  # so that a layer costs as much as a stock layer


def _settings_of(loss: RowsLoss) -> dict[str, object]:
    """Return what identifies a loss of its module: its name, and the settings bound to it."""
    if isinstance(loss, partial):
        return {**_settings_of(loss.func), "settings": repr((loss.args, loss.keywords))}
    return {"loss": getattr(loss, "__qualname__", repr(loss))}


@dataclass(frozen=True)
class ExitLosses:
    """Which exits learn, and the weights of their losses: see :class:`consistentee.TokenRecipe`."""

    weights: ExitWeights
    curriculum: ExitCurriculum
    layer_dropout: float

    def weights_at(self, exit_layers: Sequence[int], step: int, done: float) -> Tensor:
        """Compute the weight of each exit at a step, after a share ``done`` of the steps: [exits], with sum 1."""
        weights = torch.tensor(exit_weights(exit_layers, _POWERS[self.weights]))
        early = len(exit_layers) - 1
        if self.curriculum == "rotational" and early:
            weights[:-1] *= torch.arange(early) == step % early
        elif self.curriculum == "gradual":
            weights[: max(early - int(done * 2 * (early + 1)), 0)] = 0.0
        return weights / weights.sum()


def exit_weights(exit_layers: Sequence[int], power: int = 1) -> list[float]:
    """Compute the weight of each exit in a joint loss, in proportion to a power of its depth, with sum 1."""
    weights = [layer**power for layer in exit_layers]
    return [weight / sum(weights) for weight in weights]


def loss_of(recipe: TokenRecipe) -> RowsLoss:
    """Return the loss of all exits that a recipe asks for.

    Raises UserError for drawn exits with a teacher (no token is at both exits) or with layer dropout.
    """
    losses = ExitLosses(recipe.exit_weights, recipe.exit_curriculum, recipe.layer_dropout)
    if recipe.exit_curriculum == "drawn":
        if recipe.taught_share or recipe.layer_dropout:
            raise UserError(
                "drawn exits have no teacher, and skip layers already: leave taught_share and layer_dropout at 0"
            )
        return partial(drawn_loss, losses)
    return partial(taught_loss, recipe.taught_share, losses) if recipe.taught_share else partial(joint_loss, losses)


def joint_loss(losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Compute the weighted mean cross-entropy of the exits, the last one included."""
    states, weights = _states_and_weights(losses, model, batch)
    return loss_at_exits(model, states, batch.targets, weights)


def taught_loss(taught_share: float, losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Compute the same mean; exits below L learn this share from the distribution of layer L, the rest from labels.

    Layer L learns from labels, and its distribution gets no gradient from the exits that it teaches
    (self-distillation: Zhang et al., "Be Your Own Teacher", 2019, arXiv 1905.08094, section 3).
    """
    states, weights = _states_and_weights(losses, model, batch)
    last = model.exit_layers[-1]
    wanted = probabilities(model.head_state(last, states[:, -1]).detach(), model.head_weight(last), model.precision)
    wanted.mul_(taught_share)
    wanted.scatter_add_(1, batch.targets.unsqueeze(1), wanted.new_full((len(wanted), 1), 1 - taught_share))
    of_last = torch.zeros_like(weights)
    of_last[:, -1] = weights[:, -1]
    of_early = weights - of_last
    return loss_at_exits(model, states, batch.targets, of_last) + loss_at_exits(model, states, wanted, of_early)


def _states_and_weights(losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> tuple[Tensor, Tensor]:
    """Return the states before response tokens, [tokens, exits, width], and the weights of their losses."""
    if losses.layer_dropout:
        states = states_with_layer_dropout(model, batch, losses.layer_dropout)
    else:
        states = model.exit_states(batch.tokens, batch.padding_mask, batch.may_exit).speaking
    weights = losses.weights_at(model.exit_layers, batch.number, batch.done).to(states)
    return states[batch.gives_response], weights.expand(len(batch.targets), -1) / len(batch.targets)


def last_exit_loss(model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Compute the cross-entropy of the last exit, with which a model without exits is fine-tuned."""
    states = model.last_states(batch.tokens, batch.padding_mask)[batch.gives_response]
    last, weights = model.exit_layers[-1], states.new_full((len(states),), 1 / len(states))
    read = model.head_state(last, states)
    return weighted_cross_entropy(read, model.head_weight(last), batch.targets, weights, model.precision)


def loss_at_exits(model: MultiExitDecoder, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute ``sum_ie weights_ie * CE_ie`` over tokens i and exits e, a scalar.

    Args:
        model: with the exits; its precision is that of the LM head's products.
        hidden: hidden states at the exits: [tokens, exits, width].
        targets: int64 [tokens], or distributions, [tokens, vocabulary].
        weights: [tokens, exits]. An exit whose weights are all 0 is not run.
    """
    used = weights.any(dim=0).tolist()
    exits = [(index, layer) for index, layer in enumerate(model.exit_layers) if used[index]]
    if not exits:
        return hidden.new_zeros(())
    read = [model.head_state(layer, hidden[:, index]) for index, layer in exits]
    weights_read = [weights[:, index] for index, _ in exits]
    if model.shares_head and targets.dim() == 1:  # one pass over its gradient for all exits
        head, repeated = model.backbone.lm_head.weight, targets.repeat(len(exits))
        return weighted_cross_entropy(torch.cat(read), head, repeated, torch.cat(weights_read), model.precision)
    losses = [
        weighted_cross_entropy(states, model.head_weight(layer), targets, weight, model.precision)
        for (_, layer), states, weight in zip(exits, read, weights_read, strict=True)
    ]
    return torch.stack(losses).sum()


def skip_probability(layer: int, num_layers: int, dropout: float) -> float:
    """Compute the probability that a row skips a layer in training: 0 at layer 1, ``dropout`` at layer L."""
    return dropout * (math.exp((layer - 1) * math.log(2) / max(num_layers - 1, 1)) - 1)


def states_with_layer_dropout(model: MultiExitDecoder, batch: StepRows, dropout: float) -> Tensor:
    """Run all layers, each row skipping some at random: hidden states [rows, tokens, exits, width].

    Raises UserError for a model with closing layers, whose exits skip layers already.
    """
    if model.closing:
        raise UserError("layer dropout and closing layers cannot be combined: set layer_dropout to 0")
    hidden, context = model.stepper.begin(batch.tokens, batch.padding_mask)
    states = []
    for layer in range(1, model.num_layers + 1):
        skips = torch.rand(len(hidden), 1, 1, device=hidden.device) < skip_probability(layer, model.num_layers, dropout)
        hidden = torch.where(skips, hidden, model.run_layer(layer, hidden, context))
        if layer in model.exit_layers:
            states.append(hidden)
    return torch.stack(states, dim=2)


def drawn_loss(losses: ExitLosses, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Compute the mean cross-entropy of response tokens, each at an exit drawn by the weights."""
    weights = losses.weights_at(model.exit_layers, batch.number, batch.done)
    exits = draw_exits(model.exit_layers, weights, batch.may_exit)
    hidden = states_at_exits(model, batch.tokens, batch.padding_mask, exits)
    exited_at, states = exits[batch.gives_response], hidden[batch.gives_response]
    losses_at = []
    for layer in model.exit_layers:
        here = exited_at == layer
        read, targets = model.head_state(layer, states[here]), batch.targets[here]
        shares = read.new_full((len(read),), 1 / len(states))
        losses_at.append(weighted_cross_entropy(read, model.head_weight(layer), targets, shares, model.precision))
    return torch.stack(losses_at).sum()


def draw_exits(exit_layers: tuple[int, ...], weights: Tensor, may_exit: Tensor) -> Tensor:
    """Draw the layer at which every token exits, which is L if it may not exit early: int64 [rows, T].

    ``weights`` are the probabilities of the exits.
    """
    rows, columns = may_exit.shape
    of_token = weights.multinomial(rows * columns, replacement=True).view(rows, columns)
    of_row = weights.multinomial(rows, replacement=True).unsqueeze(1)
    drawn = torch.where(torch.rand(rows, 1) < ONE_EXIT_A_ROW, of_row, of_token)
    layers = torch.tensor(exit_layers)[drawn].to(may_exit.device)
    return torch.where(may_exit, layers, exit_layers[-1])


def states_at_exits(model: MultiExitDecoder, tokens: Tensor, padding_mask: Tensor, exits: Tensor) -> Tensor:
    """Run whole rows as decoding does if tokens exit at given layers; return the states at their exits.

    Layers that a token skips get its keys and values from the state at its exit. Arguments are [rows, T]; states are
    [rows, T, width].
    """
    hidden, context = model.stepper.begin(tokens, padding_mask)
    closing = len(model.closing)
    for layer in range(1, model.num_layers + 1):
        after = model.run_layer(layer, hidden, context)
        skips = (layer > exits - closing) & (layer <= model.num_layers - closing)
        hidden = torch.where(skips.unsqueeze(-1), hidden, after)
    return hidden
