"""F-PABEE (Gao et al., ICASSP 2023, arXiv 2305.11916): exit once the predicted distribution has stopped changing.

Training: as PABEE. Rule: count the consecutive layers whose predicted distribution is closer than a threshold to that
of the layer before; any other layer resets the count; exit when it reaches the patience.

Choices: the distance is the Jensen-Shannon divergence, the paper's best, in nats. The threshold is the knob. The
patience is a parameter, by default 1, the only value with which the knob reaches every exit from layer 2 on. A
regression has no distributions and is refused.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

import consistentee as ee

_ALWAYS = 1e6  # above any divergence between distributions that a classifier predicts
_THRESHOLDS = (_ALWAYS, *(10.0 ** (-exponent / 12) for exponent in range(-12, 73)), 0.0)


def jensen_shannon(now: Tensor, before: Tensor) -> Tensor:
    """Compute the mean KL of two distributions, given as logarithms, to their mixture: 0 to ln 2, [rows]."""
    mixture = torch.logaddexp(now, before) - math.log(2)
    divergences = [(part.exp() * (part - mixture)).sum(dim=-1).clamp_min(0.0) for part in (now, before)]
    return (divergences[0] + divergences[1]) / 2


class SmallStepRule(ee.ExitRule):
    """Exit if the predicted distribution is close to that of the layer before; from layer 2 on."""

    def __init__(self, threshold: float, num_labels: int) -> None:
        self.threshold = threshold
        self.num_labels = num_labels

    def start(self, rows: int, num_layers: int) -> ee.State:
        return {"previous": torch.zeros(rows, self.num_labels)}

    def should_exit(self, view: ee.LayerView, state: ee.State) -> Tensor:
        now = view.logits.log_softmax(dim=-1)
        distance = jensen_shannon(now, state["previous"])
        state["previous"] = now
        return (distance < self.threshold) & (view.layer > 1)


@dataclass(frozen=True)
class FPABEE(ee.JointMethod):
    """Joint training, patience on the distance of successive distributions.

    Attributes:
        patience: the number of consecutive distances that must be small.
    """

    name: ClassVar[str] = "f-pabee"
    paper: ClassVar[str] = "Gao et al., F-PABEE, ICASSP 2023, arXiv 2305.11916"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("distance", _THRESHOLDS, refined=True)

    patience: PositiveInt = 1

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ConsecutiveRule(SmallStepRule(knob, model.num_labels), self.patience)
