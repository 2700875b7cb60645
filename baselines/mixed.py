"""The mixed regime (Kubaty et al., ICML 2025, arXiv 2407.14320): fine-tune, then train backbone and exits together.

Training: stage 1 fine-tunes the stock model; stage 2 trains backbone and all classifiers on
``sum_t t * CE_t / sum_t t``. The paper compares it with joint training, which starts stage 2 from the pretrained model
(PABEE), and with disjoint training, which freezes the backbone in stage 2 (DeeBERT), and recommends it. Rule: exit if
the largest probability is above a threshold.

Choices: each stage takes the recipe's epochs, so that the backbone is trained twice as long as in joint training.
"""

from dataclasses import dataclass
from typing import ClassVar

import consistentee as ee
from consistentee.signals import even_log_odds, top_probability
from consistentee.training import train_last_exit


@dataclass(frozen=True)
class Mixed(ee.JointMethod):
    """Fine-tuning, then joint training; confidence rule."""

    name: ClassVar[str] = "mixed"
    paper: ClassVar[str] = "Kubaty et al., How to Train Your Multi-Exit Model?, ICML 2025, arXiv 2407.14320"
    knob: ClassVar[ee.Knob] = ee.Knob("confidence", (0.0, *even_log_odds(-4, 12, 121), 1.0))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        train_last_exit(model, task, recipe)
        return super().fit(model, task, recipe)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(top_probability, knob, exit_when="above")
