"""LayerSkip (Elhoushi et al., ACL 2024, arXiv 2404.16710): draft with the first layers, verify with the others.

Decoding (section 4.3, "self-speculative decoding"): the exit at the draft layer generates some tokens, the other layers
read them at once, and tokens that agree are kept, with one token of the full model after them. A greedy text is the
full model's. The knob is the draft layer; without verification this rule is a static exit.

Training (section 4.1), if the recipe trains the backbone: a row skips layer l with probability
``dropout * (exp((l - 1) ln 2 / (L - 1)) - 1)``, and every exit learns the next token. With a frozen backbone only the
exits are trained, in the shared stage.

Choices: exits have adapters, and by default every step trains all exits with weights in proportion to depth. The
paper's exits take turns (``curriculum: rotational`` or ``gradual``) with weights by the square of depth
(``exit_weights: squared depth``): see :mod:`consistentee.training.decoder_backbone`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from consistentee import DraftingMethod, MultiExitDecoder, TextTask, TokenRecipe
from consistentee.training import train_exits
from consistentee.training.recipe import ExitCurriculum, ExitWeights


@dataclass(frozen=True)
class LayerSkip(DraftingMethod):
    """Self-speculative decoding.

    Attributes:
        dropout: probability that a row skips layer L in training.
        curriculum: the exits that learn at a step.
        exit_weights: the weights of their losses. Without dropout and with the recipe's weights, LayerSkip uses the
            backbone of the other methods of a suite.
    """

    name: ClassVar[str] = "layerskip"
    paper: ClassVar[str] = "Elhoushi et al., LayerSkip, ACL 2024, arXiv 2404.16710"

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    curriculum: ExitCurriculum = "all"
    exit_weights: ExitWeights = "depth"

    @property
    def asks_exits(self) -> bool:
        return True

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train the exits, with layer dropout if the backbone is trained."""
        own_loss = replace(
            recipe,
            layer_dropout=self.dropout,
            exit_curriculum=self.curriculum,
            exit_weights=self.exit_weights,
            taught_share=0.0,
        )
        train_exits(model, task, own_loss)
        return model
