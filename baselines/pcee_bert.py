"""PCEE-BERT (Zhang et al., Findings of NAACL 2022): exit once some consecutive layers have been confident.

Training: as PABEE. Rule: count the consecutive layers whose entropy is below a threshold; any other layer resets the
count; exit when it reaches the patience.

Choices: the entropy is divided by ln C, so that one range of thresholds fits every task. The layers need not agree on
the answer. The patience is a parameter, the threshold the knob; the earliest exit is the layer whose number is the
patience.
"""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

import consistentee as ee
from consistentee.signals import falling_fractions, normalised_entropy

_THRESHOLDS = (1.001, *falling_fractions(6), 0.0)  # from just above the largest normalised entropy down to 0


@dataclass(frozen=True)
class PCEEBERT(ee.JointMethod):
    """Joint training, patience on confidence.

    Attributes:
        patience: the number of consecutive layers that must be confident; 1 is a plain entropy rule.
    """

    name: ClassVar[str] = "pcee-bert"
    paper: ClassVar[str] = "Zhang et al., PCEE-BERT, Findings of NAACL 2022"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("normalised entropy", _THRESHOLDS, refined=True)

    patience: PositiveInt = 2

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ConsecutiveRule(ee.ThresholdRule(normalised_entropy, knob, exit_when="below"), self.patience)
