"""consistentee-tokens-tuned: exits and backbone learn most from the tokens that exit there.

The principle of ``joint-distillation`` for tokens and the whole curve:

1. all exits together (the shared stage: with LITE's weights, LITE's backbone);
2. a short stage at a lower rate: a share ``at_exit`` of a token's weight goes to the exits that it takes with random
   thresholds on the confidences of the batch, the rest is spread evenly;
3. the policy of ``consistentee-tokens-curve``: one for all prices of a layer, the knob.

On a frozen backbone stage 2 trains the exits' adapters, on cached states.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from consistentee import MultiExitDecoder, TextTask, TokenRecipe, TokenTrace
from consistentee.arguments import Fraction
from consistentee.methods.consistent_ee.tokens import ConsistentEETokensCurve
from consistentee.methods.reward import exit_shares
from consistentee.traces.token_rows import TokenRows
from consistentee.training import Stage, StateBatch, train_exits
from consistentee.training.decoder import ADAPTERS, cached_states, train_on_states, training_rows
from consistentee.training.decoder_backbone import loss_at_exits, train_backbone
from consistentee.training.head_loss import top_probabilities

_NAME = "where-tokens-leave"


@dataclass(frozen=True)
class ConsistentEETokensTuned(ConsistentEETokensCurve):
    """Exits and backbone learn where tokens exit; one policy for the whole curve.

    Attributes:
        at_exit: share of a token's weight at the exits that it takes; the rest is spread evenly.
        rate, steps: of stage 2, as a share of the recipe's.
    """

    name: ClassVar[str] = "consistentee-tokens-tuned"
    paper: ClassVar[str] = "ours: ConsistentEE for decoders (AAAI 2024) whose backbone learns where tokens exit"

    at_exit: Fraction = 0.3
    rate: PositiveFloat = 0.5
    steps: PositiveFloat = 0.25

    def train_stage_1(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> TokenTrace:
        """Run stages 1 and 2, and return the trace of the training rows."""
        trace = train_exits(model, task, recipe)
        if len(model.exit_layers) == 1:
            return trace
        if recipe.trains == "exits":
            self._train_adapters(trace, recipe)
            return trace
        rows = training_rows(model, task, recipe)
        shorter = replace(
            recipe,
            backbone_steps=ceil(recipe.backbone_steps * self.steps),
            backbone_learning_rate=recipe.backbone_learning_rate * self.rate,
            exit_learning_rate=recipe.exit_learning_rate * self.rate,
        )
        loss = partial(loss_of_rows, self.at_exit)
        train_backbone(model, rows, shorter, loss, name=_NAME, also_trains=(ADAPTERS,))
        return cached_states(model, rows[: recipe.traced_rows], recipe)

    def _train_adapters(self, trace: TokenTrace, recipe: TokenRecipe) -> None:
        stage = Stage(
            name=_NAME,
            loss=partial(loss_of_states, self.at_exit),
            trains=(ADAPTERS,),
            batch_size=recipe.exit_batch_size,
            learning_rate=recipe.exit_learning_rate * self.rate,
            details={"at_exit": self.at_exit},
            shared=True,
        )
        train_on_states(trace, trace.may_exit, ceil(recipe.exit_steps * self.steps), stage, recipe)


def loss_of_rows(at_exit: float, model: MultiExitDecoder, batch: TokenRows) -> Tensor:
    """Compute the loss of a batch of rows, through the backbone."""
    states = model.exit_states(batch.tokens, batch.padding_mask, batch.may_exit).speaking
    return loss_where_tokens_leave(at_exit, model, states[batch.gives_response], batch.targets)


def loss_of_states(at_exit: float, model: MultiExitDecoder, batch: StateBatch) -> Tensor:
    """Compute the loss of a batch of tokens, from cached states."""
    return loss_where_tokens_leave(at_exit, model, batch.speaking, batch.targets)


def loss_where_tokens_leave(at_exit: float, model: MultiExitDecoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean over tokens of the exits' cross-entropies, weighted by where tokens exit.

    Args:
        at_exit: see :class:`ConsistentEETokensTuned`.
        model: with the exits.
        hidden: hidden states that the exits read: [tokens, exits, width].
        targets: the next tokens: int64 [tokens].
    """
    with torch.no_grad():
        sure = [
            top_probabilities(model.head_state(layer, hidden[:, index]), model.head_weight(layer), model.precision)
            for index, layer in enumerate(model.exit_layers)
        ]
    shares = exit_shares(1 - torch.stack(sure, dim=1), at_exit)
    return loss_at_exits(model, hidden, targets, shares / len(targets))
