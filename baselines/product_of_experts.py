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

import torch
from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee.signals import even_log_odds, top_probability
from consistentee.training import train_jointly


class ProductClassifier(ee.LinearClassifier):
    """A linear classifier that answers with the product of the classifiers so far."""

    reads_history: ClassVar[bool] = True

    def __init__(self, spec: ee.ClassifierSpec, place: ee.ExitPlace) -> None:
        super().__init__(spec, place)
        # A tuple, so that the classifiers belong to their own exits alone.
        self._experts = (*(other for other in place.before if isinstance(other, ProductClassifier)), self)
        self._num_layers = place.num_layers

    def forward(self, layer: ee.ReadableLayer) -> Tensor:
        experts = zip(self._experts, layer.history.unbind(dim=1), strict=True)
        said = [functional.linear(expert.dropout(pooled), expert.weight, expert.bias) for expert, pooled in experts]
        logits = torch.stack(said, dim=1)
        # The logarithm of softplus is the logit itself far below 0, where softplus would be rounded to 0.
        logs = torch.where(logits < -15, logits, functional.softplus(logits).log())
        shares = torch.arange(1, len(said) + 1, device=logs.device) / self._num_layers
        return (logs * shares.unsqueeze(1)).sum(dim=1)


@dataclass(frozen=True)
class ProductOfExperts(ee.Method):
    """Joint training, product of the exits so far, confidence rule."""

    name: ClassVar[str] = "product-of-experts"
    paper: ClassVar[str] = "Jazbec et al., Towards Anytime Classification in Early-Exit Architectures, NeurIPS 2023"
    knob: ClassVar[ee.Knob] = ee.Knob("confidence", (0.0, *even_log_odds(-4, 12, 121), 1.0))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        train_jointly(model, task, recipe)
        experts = model.classifiers.state_dict()
        model.use_classifier(ee.ClassifierSpec("product"))
        model.classifiers.load_state_dict(experts)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(top_probability, knob, exit_when="above")
