"""FastBERT (Liu et al., ACL 2020, arXiv 2004.02178): students distilled from the fine-tuned model's last classifier.

Training (section 3.2): the backbone and the teacher, the classifier of layer L, are fine-tuned and frozen. The
students, the classifiers before it, learn ``sum_{t<L} KL(teacher || student_t)``, without labels. Rule (section 3.3):
exit if the entropy of the student, divided by ln C, is below a threshold, the *speed*.

A student (section 3.1) reads all tokens of its layer: 128 wide, with self-attention (``classifier="attention"``).
Other networks of exits are trained in the same way.

Choices: the teacher is the stock model's linear classifier, so that the stage is shared; the paper's has attention. The
attention has two heads. The paper writes the divergence with the student first, here the teacher is first. Distillation
takes 5/3 of the recipe's epochs, the paper's proportion, or ``steps``, until the students have converged; linear
students use cached features, for the recipe's frozen steps, with a pooler each if the backbone has one. The frozen
model runs without dropout.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

import consistentee as ee
from consistentee.signals import falling_fractions, normalised_entropy
from consistentee.training import ExitNetwork, student_loss, train_early_exits, train_last_exit, training_source

_SPEEDS = (1.001, *falling_fractions(6)[1:], 0.0)  # from just above the largest normalised entropy down to 0


@dataclass(frozen=True)
class FastBERT(ee.Method):
    """Self-distillation, normalised-entropy rule.

    Attributes:
        classifier: the network of the students; "attention" is the paper's.
        steps: of the distillation, on cached states; None for 5/3 of the recipe's epochs, if the students attend.
        learning_rate: of students that attend; None for the recipe's of exits. Released: ten times the backbone's.
    """

    name: ClassVar[str] = "fastbert"
    paper: ClassVar[str] = "Liu et al., FastBERT, ACL 2020, arXiv 2004.02178"
    knob: ClassVar[ee.Knob] = ee.Knob("speed", _SPEEDS)

    classifier: ExitNetwork = "attention"
    steps: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier != "attention":
            self.refuse("learning_rate", because="the students do not attend")

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        rows = training_source(model, task, recipe)
        train_last_exit(model, rows, recipe)  # before the students exist, so that it is DeeBERT's stage
        epochs = math.ceil(recipe.epochs * 5 / 3) if self.steps is None else None
        steps, rate = self.steps or recipe.frozen_steps, self.learning_rate or recipe.head_learning_rate
        own = replace(recipe, frozen_steps=steps, head_learning_rate=rate)
        train_early_exits(
            model, rows, student_loss, own, name="self-distillation", network=self.classifier, attention_epochs=epochs
        )
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(normalised_entropy, knob, exit_when="below")
