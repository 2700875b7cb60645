"""Balcony (Jamialahmadi et al., EMNLP 2025, arXiv 2503.05005): exits that are whole decoder layers, one a budget.

Backbone and LM head are frozen. An exit is a decoder layer of its own, which starts as a copy of the last one, a norm
of its own and the shared LM head. All exits learn together to say what the full model says: mean over exits of
KL(full || exit), mean over tokens.

Decoding: a budget picks one exit e, for every token of prompt and text alike. So what runs is a decoder of e + 1
layers, layers 1 to e and the exit's, whose keys and values have no holes; and that is what is counted. At full depth it
is the stock model.

Choices. The loss is that of response tokens, where the paper's masks padding alone. Rates decay linearly, as all do
here, and not as a cosine. Where a recipe trains the backbone, that comes before, in the stage that all methods share.
The paper's exits with attention alone or an MLP alone are left out, as is its random start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.methods.method import Knob
from consistentee.methods.token_method import TokenMethod
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack
from consistentee.rules.exit_rule import ExitRule, StaticRule
from consistentee.rules.schedules import check_exit_layer
from consistentee.training.decoder.branch_stage import train_branches
from consistentee.training.recipe import TokenRecipe


@dataclass(frozen=True)
class Balcony(TokenMethod):
    """A shallower decoder for every budget, on a frozen backbone."""

    name: ClassVar[str] = "balcony"
    paper: ClassVar[str] = "Jamialahmadi et al., Balcony, EMNLP 2025, arXiv 2503.05005"
    knob: ClassVar[Knob] = Knob("exit layer", tuple(float(layer) for layer in range(6, 31, 6)))

    @property
    def asks_exits(self) -> bool:
        return True

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train a decoder layer for every exit."""
        self.check_task(task)
        last = BranchSpec(copied_layer=model.num_layers)
        train_branches(model, task, recipe, lambda exit_layer: last)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return the exit layers."""
        return tuple(float(layer) for layer in model.exit_layers)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit at layer ``knob``. Raises UserError where there is no exit.

        Of :meth:`model_at` a token runs all layers: an exit is that decoder's end.
        """
        self.check_knob(model, knob)
        return StaticRule(check_exit_layer(model, knob))

    def model_at(self, model: MultiExitDecoder, knob: float) -> MultiExitDecoder:
        """Return the first ``knob`` layers with the exit's own behind them; at full depth, the model as it is."""
        layer = check_exit_layer(model, knob)
        return model if layer == model.num_layers else DecoderStack(model, layer)
