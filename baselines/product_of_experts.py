"""Product of experts (Jazbec et al., NeurIPS 2023, arXiv 2306.02652): predictions that rarely change for the worse.

Training: backbone and all classifiers together, on ``sum_t t * CE_t / sum_t t``; nothing is trained afterwards. At exit
m the answer is the product of the exits so far, ``p_m(y) ~ prod_{j<=m} softplus(f_j(y))^(j/L)`` with f_j the logits of
exit j. A class that an exit finds unlikely stays unlikely at later exits. Rule: exit if the largest probability of the
product is above a threshold.

Choices: the paper cuts logits at 0; a softplus replaces this, because with two classes one negative logit would exclude
a class for good. Layer L answers with the product of all exits.
"""

from dataclasses import dataclass
from typing import ClassVar

from consistentee import ClassifierSpec, ExitRule, Knob, Method, MultiExitModel, Recipe, TaskData, ThresholdRule
from consistentee.signals import even_log_odds, top_probability
from consistentee.training import train_jointly


@dataclass(frozen=True)
class ProductOfExperts(Method):
    """Joint training, product of the exits so far, confidence rule."""

    name: ClassVar[str] = "product-of-experts"
    paper: ClassVar[str] = "Jazbec et al., Towards Anytime Classification in Early-Exit Architectures, NeurIPS 2023"
    knob: ClassVar[Knob] = Knob("confidence", (0.0, *even_log_odds(-4, 12, 121), 1.0))

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train backbone and linear classifiers, and let every exit answer with the product of those so far."""
        train_jointly(model, task, recipe)
        experts = model.classifiers.state_dict()
        model.use_classifier(ClassifierSpec("product"))
        model.classifiers.load_state_dict(experts)
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit if the largest probability of the product is above ``knob``."""
        return ThresholdRule(top_probability, knob, exit_when="above")
