"""LayerSkip (Elhoushi et al., ACL 2024, arXiv 2404.16710): draft with the first layers, verify with the others.

Decoding (section 4.3, "self-speculative decoding"): the exit at the draft layer generates some tokens, the other layers
read them at once, and tokens that agree are kept, with one token of the full model after them. A greedy text is the
full model's. The knob is the draft layer; without verification this rule is a static exit.

Training (section 4.1), if the recipe trains the backbone: a row skips layer l with probability
``dropout * (exp((l - 1) ln 2 / (L - 1)) - 1)``, and every exit learns the next token. With a frozen backbone only the
exits are trained, in the shared stage.

Choices: the draft length is chosen for each draft layer on validation texts. Exits have adapters, and every step trains
all exits, where the paper's take turns. Their weights are by default in proportion to depth, the paper's to its square
(``exit_weights: squared depth``): see :mod:`consistentee.training.decoder_backbone`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

import consistentee as ee
from consistentee.training import ExitWeights


@dataclass(frozen=True)
class LayerSkip(ee.DraftingMethod):
    """Self-speculative decoding.

    Attributes:
        dropout: probability that a row skips layer L in training.
        exit_weights: the weights of the exits' losses. Without dropout and with the recipe's weights, LayerSkip
            uses the backbone of the other methods of a suite.
    """

    name: ClassVar[str] = "layerskip"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = "Elhoushi et al., LayerSkip, ACL 2024, arXiv 2404.16710"
    asks_exits: ClassVar[bool] = True

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    exit_weights: ExitWeights = "depth"

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        if recipe.trains == "exits":
            self.refuse("dropout", "exit_weights", because="the recipe does not train the backbone")
        own_loss = replace(recipe, layer_dropout=self.dropout, exit_weights=self.exit_weights, taught_share=0.0)
        return super().fit(model, task, own_loss)
