"""BEEM (Bajpai & Hanawal, ICLR 2025, arXiv 2502.00745): exits are experts whose weighted confidences add up.

Training: backbone and all classifiers together, on ``sum_t t * CE_t / sum_t t``. Rule: with C_t the largest probability
of exit t and w_t the weight of that expert, ``S_t = S_{t-1} + w_t C_t`` if the answer equals that of the layer before,
else ``S_t = w_t C_t``; exit once S_t reaches a threshold. Weights are the accuracies of the exits (BEEM-A).

Choices: weights by cost (BEEM-C) are left out. Accuracies are measured on a tenth of the training rows, which are held
out, and stored in the model as factors. The paper has a threshold for each exit; here one knob, a share of the largest
score before layer L. The divergence term in training is left out, because its form was not available. Errors of the
authors' code are not repeated: agreeing layers are counted in place of S, weights start at 0, a run of agreement omits
its first exit, and agreement is required of a whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

import consistentee as ee
from consistentee.signals import top_probability
from consistentee.training import hold_out, recorded_logits, train_jointly, training_source

EXPERTS = "experts"
# Shares of an expert's weight, dense near 1, because trained classifiers are mostly certain.
_PARTS = tuple(1 - 10.0 ** (-exponent / 4) for exponent in range(16))
_OUT_OF_REACH = 1.001
_LARGEST_SCORE_AT_LEAST = 1e-9  # replaces the largest score if no exit is ever right, so that no row reaches it


class ExpertsRule(ee.ExitRule):
    """Exit once the weighted confidences of consecutive layers with this answer sum to a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"previous": torch.full((rows,), -1), "score": torch.zeros(rows)}

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        vote = view.head(EXPERTS, top_probability(view).unsqueeze(1))
        state["score"] = torch.where(view.predictions == state["previous"], state["score"], 0.0) + vote
        state["previous"] = view.predictions
        return state["score"] >= self.threshold


@dataclass(frozen=True)
class BEEM(ee.Method):
    """Joint training, weighted confidences of agreeing exits.

    Attributes:
        held_out: fraction of the training rows on which accuracies are measured.
    """

    name: ClassVar[str] = "beem"
    paper: ClassVar[str] = "Bajpai & Hanawal, BEEM, ICLR 2025, arXiv 2502.00745"
    knob: ClassVar[ee.Knob] = ee.Knob(
        "score", (*((layer + part) / 11 for layer in range(11) for part in _PARTS), _OUT_OF_REACH)
    )

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source, judged = hold_out(training_source(model, task, recipe), self.held_out)
        train_jointly(model, source, recipe)
        answers = recorded_logits(model, judged, recipe).argmax(dim=-1)
        model.add_factors(EXPERTS, (answers == judged.labels.unsqueeze(1)).double().mean(dim=0))
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        weights = model.factors(EXPERTS)[:-1]
        largest = _largest_score(weights)
        starts = (0.0, *accumulate(weights))
        values = [
            (start + weight * part) / largest for start, weight in zip(starts, weights, strict=False) for part in _PARTS
        ]
        return (*values, _OUT_OF_REACH)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ExpertsRule(knob * _largest_score(model.factors(EXPERTS)[:-1]))


def _largest_score(weights: Sequence[float]) -> float:
    return max(sum(weights), _LARGEST_SCORE_AT_LEAST)
