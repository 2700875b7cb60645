"""PABEE (Zhou et al., NeurIPS 2020, arXiv 2006.04152): exit once the answer has not changed for some layers.

Training (section 3.3): backbone and all classifiers together, on ``sum_t t * CE_t / sum_t t``. Rule (section 3.2):
count the consecutive layers whose answer equals that of the layer before; a change resets the count; exit when it
reaches the patience. The earliest exit is patience + 1. In a regression an answer is unchanged if it moved by less than
``tolerance``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat

import consistentee as ee


@dataclass(frozen=True)
class PABEE(ee.JointMethod):
    """Joint training, patience rule.

    Attributes:
        tolerance: how far a regression's answer may move and still be unchanged.
    """

    name: ClassVar[str] = "pabee"
    paper: ClassVar[str] = "Zhou et al., BERT Loses Patience, NeurIPS 2020, arXiv 2006.04152"
    knob: ClassVar[ee.Knob] = ee.Knob("patience", tuple(float(patience) for patience in range(1, 12)))
    supports_regression: ClassVar[bool] = True

    tolerance: NonNegativeFloat = 0.1

    def check_task(self, task: ee.TaskData) -> None:
        super().check_task(task)
        if not task.regression:
            self.refuse("tolerance", because="classes are the same or not")

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return tuple(float(patience) for patience in range(1, model.num_layers))

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ConsecutiveRule(ee.SameAnswerRule(self.tolerance), patience=knob)
