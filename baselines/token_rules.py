"""Two rules of classification on tokens: DeeBERT's entropy and PABEE's patience.

Sources: Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993, section 3.2 (leave where the entropy of the exit, in nats, is
below a threshold); Zhou et al., BERT Loses Patience, NeurIPS 2020, arXiv 2006.04152, section 3.2 (leave once the answer
has stayed the same for ``patience`` consecutive exits). The rules are the very objects of classification: to a rule, a
row is a row. The count of a token begins anew with it.

Training. With a frozen backbone both are the stage that all methods share: each exit is an adapter of its own, so that
the weights of the sum (DeeBERT's are all 1, PABEE's grow with depth) hardly matter. Where the backbone is trained:
DeeBERT trains it with the last exit alone and the other exits afterwards, PABEE all together; so does DeeBERT where
exits have nothing of their own that could be trained afterwards (``adapter: shared``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from consistentee.data.prompts import TextTask
from consistentee.methods.knob_grids import entropy_thresholds
from consistentee.methods.method import Knob
from consistentee.methods.vocabulary_method import VocabularyMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ConsecutiveRule, ExitRule, SameAnswerRule, ThresholdRule
from consistentee.rules.signals import entropy
from consistentee.training.decoder.stages import train_exits, train_last_exit
from consistentee.training.recipe import TokenRecipe

_DECADES = 4
"""Thresholds fall to 1e-4 of the largest entropy."""

_USUAL_VOCABULARY = 49_152
"""SmolLM2's."""


@dataclass(frozen=True)
class TokenEntropy(VocabularyMethod):
    """Leave where the exit is certain of the next token."""

    name: ClassVar[str] = "token-entropy"
    paper: ClassVar[str] = "Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993 (its rule, on tokens)"
    knob: ClassVar[Knob] = Knob("entropy", entropy_thresholds(_USUAL_VOCABULARY, _DECADES))

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Fine-tune the stock model where the recipe trains the backbone, then the exits on what it leaves."""
        self.check_task(task)
        if recipe.trains != "exits" and model.exits_have_weights:
            train_last_exit(model, task, recipe)
            recipe = replace(recipe, trains="exits")
        train_exits(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return thresholds from just above ln V, the largest entropy, down to 0."""
        return entropy_thresholds(model.stepper.vocabulary, _DECADES, beyond=1.001)

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit where the entropy is below ``knob`` nats."""
        self.check_knob(model, knob)
        return self.pruned(ThresholdRule(entropy, knob, exit_when="below"))


@dataclass(frozen=True)
class TokenPatience(VocabularyMethod):
    """Leave once some consecutive exits have named the same token."""

    name: ClassVar[str] = "token-patience"
    paper: ClassVar[str] = "Zhou et al., BERT Loses Patience, NeurIPS 2020, arXiv 2006.04152 (its rule, on tokens)"
    knob: ClassVar[Knob] = Knob("patience", (1.0, 2.0, 3.0, 4.0))

    def fit(self, model: MultiExitDecoder, task: TextTask, recipe: TokenRecipe) -> MultiExitDecoder:
        """Train all exits together, with the backbone where the recipe trains it."""
        self.check_task(task)
        train_exits(model, task, recipe)
        return model

    def knob_values(self, model: MultiExitDecoder) -> Sequence[float]:
        """Return 1 to the number of exits less one: exits from the second one on, and full depth."""
        return tuple(float(patience) for patience in range(1, max(len(model.exit_layers), 2)))

    def rule(self, model: MultiExitDecoder, knob: float) -> ExitRule:
        """Exit with patience ``knob``, counted in exits."""
        self.check_knob(model, knob)
        return self.pruned(ConsecutiveRule(SameAnswerRule(), patience=knob))
