"""LayerSkip (Elhoushi et al., ACL 2024, arXiv 2404.16710): draft with the first layers, verify with the others.

Decoding (section 4.3, "self-speculative decoding"): the exit at the draft layer writes some tokens, the remaining
layers then read them all at once, and what they agree with is kept, with one token of their own after it. Keys and
values of the first layers are shared. A greedy text is the full model's, token for token, whatever the exits were
trained on; what training changes is how many drafts are accepted.

Training (section 4.1), where the recipe trains the backbone: a row skips layer l with probability
``dropout * (exp((l - 1) ln 2 / (L - 1)) - 1)``, from 0 at layer 1 to ``dropout`` at layer L; and every exit learns to
say the next token, weights growing with depth. With a frozen backbone there is no layer dropout: the exits alone are
trained, by the stage that all methods share. Choices: every step trains all exits, where the paper takes turns; their
weights are in proportion to depth, where the paper's grow with its square; exits have adapters.

The rule is the draft's: every token leaves at the draft layer. Without verification, that is a static exit.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from consistentee.data.prompts import TextTask
from consistentee.errors import UserError
from consistentee.methods.drafting import DraftingMethod
from consistentee.models.decoder import MultiExitDecoder
from consistentee.traces.token_rows import TokenRows
from consistentee.training.recipe import TokenRecipe
from consistentee.training.token_stages import joint_loss, train_exits


@dataclass(frozen=True)
class LayerSkip(DraftingMethod):
    """Self-speculative decoding.

    Attributes:
        dropout: probability that a row skips layer L in training.
    """

    name: ClassVar[str] = "layerskip"
    paper: ClassVar[str] = "Elhoushi et al., LayerSkip, ACL 2024, arXiv 2404.16710"

    dropout: float = 0.1

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the exits, with layer dropout where the backbone is trained."""
        self.check_task(task)
        if not 0 <= self.dropout < 1:
            raise UserError(f"{self.name}: dropout must lie in [0, 1), got {self.dropout:g}")
        train_exits(model, task, recipe, backbone_loss=partial(_loss_with_layer_dropout, self.dropout))
        return model


def skip_probability(layer: int, num_layers: int, dropout: float) -> float:
    """Return the probability that a row skips a layer in training: 0 at layer 1, ``dropout`` at layer L."""
    return dropout * (math.exp((layer - 1) * math.log(2) / max(num_layers - 1, 1)) - 1)


def states_with_layer_dropout(model: MultiExitDecoder, batch: TokenRows, dropout: float) -> Tensor:
    """Run all layers, each row skipping some at random: hidden states [rows, tokens, exits, width]."""
    hidden, context = model.stepper.begin(batch.tokens, batch.padding_mask)
    states = []
    for layer in range(1, model.num_layers + 1):
        skips = torch.rand(len(hidden), 1, 1, device=hidden.device) < skip_probability(layer, model.num_layers, dropout)
        hidden = torch.where(skips, hidden, model.stepper.step(layer, hidden, context))
        if layer in model.exit_layers:
            states.append(hidden)
    return torch.stack(states, dim=2)


def _loss_with_layer_dropout(dropout: float, model: MultiExitDecoder, batch: TokenRows) -> Tensor:
    return joint_loss(model, batch, states_with_layer_dropout(model, batch, dropout))
