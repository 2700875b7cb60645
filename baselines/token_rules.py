"""Two rules of classification on tokens: DeeBERT's entropy and PABEE's patience.

Sources: Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993, section 3.2 (exit if the entropy, in nats, is below a
threshold); Zhou et al., BERT Loses Patience, NeurIPS 2020, arXiv 2006.04152, section 3.2 (exit once the answer is the
same for ``patience`` consecutive exits). The count starts anew with each token.

Training: with a frozen backbone both use the shared stage, in which each exit has an adapter of its own. If the
backbone is trained, DeeBERT trains it with the last exit and the other exits afterwards, PABEE all together. DeeBERT
does too if exits have no weights of their own (``adapter: shared``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import consistentee as ee
from consistentee.signals import entropy, entropy_thresholds
from consistentee.training import train_exits, train_last_token_exit

_DECADES = 4  # thresholds fall to 1e-4 of the largest entropy
_USUAL_VOCABULARY = 49_152  # that of SmolLM2


@dataclass(frozen=True)
class TokenEntropy(ee.VocabularyMethod):
    """Exit if the exit is certain of the next token."""

    name: ClassVar[str] = "token-entropy"
    paper: ClassVar[str] = "Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993 (its rule, on tokens)"
    knob: ClassVar[ee.Knob] = ee.Knob("entropy", entropy_thresholds(_USUAL_VOCABULARY, _DECADES))

    def fit(self, model: ee.MultiExitDecoder, task: ee.TextTask, recipe: ee.TokenRecipe) -> ee.MultiExitDecoder:
        """Fine-tune the stock model if the recipe trains the backbone, then train the exits."""
        if recipe.trains != "exits" and model.exits_have_weights:
            train_last_token_exit(model, task, recipe)
            recipe = replace(recipe, trains="exits")
        train_exits(model, task, recipe)
        return model

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return entropy_thresholds(model.stepper.vocabulary, _DECADES, beyond=1.001)

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        """Exit if the entropy is below ``knob`` nats."""
        return self.pruned(ee.ThresholdRule(entropy, knob, exit_when="below"))


@dataclass(frozen=True)
class TokenPatience(ee.VocabularyMethod):
    """Exit once some consecutive exits have predicted the same token."""

    name: ClassVar[str] = "token-patience"
    paper: ClassVar[str] = "Zhou et al., BERT Loses Patience, NeurIPS 2020, arXiv 2006.04152 (its rule, on tokens)"
    knob: ClassVar[ee.Knob] = ee.Knob("patience", (1.0, 2.0, 3.0, 4.0))

    def knob_values(self, model: ee.MultiExitDecoder) -> Sequence[float]:
        return tuple(float(patience) for patience in range(1, max(len(model.exit_layers), 2)))

    def rule(self, model: ee.MultiExitDecoder, knob: float) -> ee.ExitRule:
        """Exit with patience ``knob``, counted in exits."""
        return self.pruned(ee.ConsecutiveRule(ee.SameAnswerRule(), patience=knob))
