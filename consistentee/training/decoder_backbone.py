"""Train a decoder's backbone with its exits: losses of the exits on response tokens, and the stage.

One loss, a weighted mean of the exits' cross-entropies through the LM head, is that of several papers:

* weights in proportion to depth: CALM (Schuster et al., 2022, arXiv 2207.07061, section 3.4);
* equal weights: LITE (Varshney et al., 2024, arXiv 2310.18581), and sorted fine-tuning (SoFT, Kavehzadeh et al.,
  2024, arXiv 2309.08968);
* weights in proportion to the square of depth, and layer dropout: LayerSkip (Elhoushi et al., 2024, arXiv 2404.16710,
  section 4.1), without a schedule of the dropout over time, as in its fine-tuning.

Kept for every exit, logits take gigabytes. The loss is a weighted sum over tokens, so that its gradient is computed
with the logits, a chunk of tokens at a time (as the fused cross-entropy of Hsu et al., Liger Kernel, 2024, arXiv
2410.10989).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.files import hash_json
from consistentee.models.base import Precision
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_trace import TokenRow, TokenRows, collate_rows
from consistentee.training.loop import Stage, run_stage
from consistentee.training.recipe import ExitWeights, TokenRecipe, drawn

RowsLoss = Callable[[MultiExitDecoder, TokenRows], Tensor]
"""A loss that runs the backbone: (model, rows of a step) -> scalar."""

_POWERS: dict[ExitWeights, int] = {"equal": 0, "depth": 1, "squared depth": 2}


class DrawnRows:
    """Prompts with responses, drawn at random: as many as a stage takes."""

    runs_backbone = True

    def __init__(self, model: MultiExitDecoder, rows: Sequence[TokenRow], draws: int, seed: int) -> None:
        self.model = model
        self.rows = rows
        answered = [number for number, (_, response) in enumerate(rows) if len(response)]
        self.numbers = drawn(torch.tensor(answered, dtype=torch.long), draws, seed)
        self.lengths = torch.tensor([sum(map(len, rows[i])) for i in self.numbers.tolist()])

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, rows: Tensor, step: int) -> TokenRows:
        return collate_rows(self.model, [self.rows[i] for i in self.numbers[rows].tolist()])

    def fingerprint(self) -> str:
        return hash_json([[list(part) for part in self.rows[i]] for i in self.numbers.tolist()])


def train_backbone(
    model: MultiExitDecoder,
    rows: Sequence[TokenRow],
    recipe: TokenRecipe,
    loss: RowsLoss,
    *,
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
    stage = Stage(
        name=f"backbone-{recipe.trains}",
        loss=loss,
        trains=(*backbone, *also_trains),
        batch_size=recipe.backbone_batch_size,
        learning_rate=recipe.backbone_learning_rate,
        head_learning_rate=recipe.exit_learning_rate,
        stage_key={"settings": loss.args} if isinstance(loss, partial) else {},
        shared=True,
    )
    source = DrawnRows(model, rows, recipe.backbone_steps * recipe.backbone_batch_size, recipe.seed)
    run_stage(model, source, stage, recipe)
    if recipe.trains == "lora":
        model.merge_lora()  # so that a layer costs as much as a stock layer


def exit_weights(exit_layers: Sequence[int], power: int = 1) -> list[float]:
    """Compute the weight of each exit in a joint loss, in proportion to a power of its depth, with sum 1."""
    weights = [layer**power for layer in exit_layers]
    return [weight / sum(weights) for weight in weights]


def joint_loss(
    weighting: ExitWeights, taught_share: float, layer_dropout: float, model: MultiExitDecoder, batch: TokenRows
) -> Tensor:
    """Compute the weighted mean cross-entropy of the exits, the last one included.

    Exits below L learn ``taught_share`` of it from the distribution of layer L, the rest from labels. Layer L learns
    from labels, and its distribution gets no gradient from the exits that it teaches (self-distillation: Zhang et al.,
    "Be Your Own Teacher", 2019, arXiv 1905.08094, section 3).
    """
    if layer_dropout:
        states = states_with_layer_dropout(model, batch, layer_dropout)
    else:
        states = model.exit_states(batch.tokens, batch.padding_mask, batch.may_exit).answer_states
    states = states[batch.gives_response]  # [tokens, exits, width]
    weights = torch.tensor(exit_weights(model.exit_layers, _POWERS[weighting])).to(states) / len(states)
    weights = weights.expand(len(states), -1)
    if not taught_share:
        return loss_at_exits(model, states, batch.targets, weights)
    last = model.exit_layers[-1]
    wanted = probabilities(model.head_state(last, states[:, -1]).detach(), model.head_weight(last), model.precision)
    wanted.mul_(taught_share)
    wanted.scatter_add_(1, batch.targets.unsqueeze(1), wanted.new_full((len(wanted), 1), 1 - taught_share))
    of_last = torch.zeros_like(weights)
    of_last[:, -1] = weights[:, -1]
    of_early = weights - of_last
    return loss_at_exits(model, states, batch.targets, of_last) + loss_at_exits(model, states, wanted, of_early)


def last_exit_loss(model: MultiExitDecoder, batch: TokenRows) -> Tensor:
    """Compute the cross-entropy of the last exit, with which a model without exits is fine-tuned."""
    states = model.exit_states(batch.tokens, batch.padding_mask).answer_states[:, :, -1][batch.gives_response]
    last, weights = model.exit_layers[-1], states.new_full((len(states),), 1 / len(states))
    read = model.head_state(last, states)
    return weighted_cross_entropy(read, model.head_weight(last), batch.targets, weights, model.precision)


def loss_at_exits(model: MultiExitDecoder, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute ``sum_ie weights_ie * CE_ie`` over tokens i and exits e, a scalar.

    ``hidden`` are states at the exits, [tokens, exits, width]; ``targets`` int64 [tokens], or distributions, [tokens,
    vocabulary]; ``weights`` [tokens, exits]. An exit whose weights are all 0 is not run.
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


def states_with_layer_dropout(model: MultiExitDecoder, batch: TokenRows, dropout: float) -> Tensor:
    """Run all layers, each row skipping some at random: hidden states [rows, tokens, exits, width].

    Raises UserError for a model with closing layers, whose exits skip layers already.
    """
    if model.last_layers:
        raise UserError("layer dropout and closing layers cannot be combined: set layer_dropout to 0")
    hidden, context = model.stepper.begin(batch.tokens, batch.padding_mask)
    states = []
    for layer in range(1, model.num_layers + 1):
        skips = torch.rand(len(hidden), 1, 1, device=hidden.device) < skip_probability(layer, model.num_layers, dropout)
        hidden = torch.where(skips, hidden, model.run_layer(layer, hidden, context))
        if layer in model.exit_layers:
            states.append(hidden)
    return torch.stack(states, dim=2)


_TOKENS_AT_A_TIME = 512
"""Tokens whose logits are held at a time: 100 MB of a vocabulary of 49,152."""


def weighted_cross_entropy(
    states: Tensor, lm_head: Tensor, targets: Tensor, weights: Tensor, precision: Precision = "float32"
) -> Tensor:
    """Return ``sum_i weights_i * CE_i``, a scalar; states and LM head get its gradient.

    Args:
        states: what the LM head reads: [tokens, width].
        lm_head: its weights: [vocabulary, width].
        targets: int64 [tokens], or distributions, [tokens, vocabulary]; they get no gradient.
        weights: [tokens]; they get no gradient.
        precision: of the products; softmax and sums are as precise as the states.
    """
    products = _type_of_products(states, precision)
    loss: Tensor = _WeightedCrossEntropy.apply(states, lm_head, targets, weights.detach(), products)
    return loss


@torch.no_grad()
def probabilities(states: Tensor, lm_head: Tensor, precision: Precision = "float32") -> Tensor:
    """Return the distributions of the LM head, [tokens, vocabulary]; arguments as of :func:`weighted_cross_entropy`."""
    products = _type_of_products(states, precision)
    return (states.to(products) @ lm_head.to(products).T).to(states.dtype).softmax(dim=-1)


def _type_of_products(states: Tensor, precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else states.dtype


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (torch passes all by their place)
        ctx: Any, states: Tensor, lm_head: Tensor, targets: Tensor, weights: Tensor, products: torch.dtype
    ) -> Tensor:
        learns, head_learns, *_ = ctx.needs_input_grad
        loss, to_states = states.new_zeros(()), torch.zeros_like(states)
        head = lm_head.detach().requires_grad_(head_learns)
        with torch.enable_grad():
            columns = head.to(products).T
            for start in range(0, len(states), _TOKENS_AT_A_TIME):
                part = slice(start, start + _TOKENS_AT_A_TIME)
                read = states[part].detach().requires_grad_(learns)
                scores = (read.to(products) @ columns).to(states.dtype)
                part_loss = weights[part] @ functional.cross_entropy(scores, targets[part], reduction="none")
                loss += part_loss.detach()
                if part_loss.requires_grad:
                    part_loss.backward()
                if read.grad is not None:
                    to_states[part] = read.grad
        ctx.save_for_backward(to_states, head.grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if found is None else found * of_loss for found in ctx.saved_tensors)
        return (*gradients, None, None, None)
