"""FastBERT (Liu et al., ACL 2020, arXiv 2004.02178): students distilled from the fine-tuned model's own last answer.

Training (section 3.2): the backbone and the teacher, the classifier of layer L, are fine-tuned; then both are frozen,
and the students, the classifiers before it, learn to give the teacher's distribution:
``sum_{t<L} KL(teacher || student_t)``. No label is read, so rows without labels would do. Rule (section 3.3): leave
where the entropy of the student, divided by ln C, is at most a threshold, the *speed*; written here as "below", so that
0 never leaves, and anything above 1 leaves at layer 1.

A student (section 3.1) looks at all tokens of its layer: 128 wide, with self-attention inside
(``classifier="attention"``). ``classifier="linear"`` gives the same training to the classifiers that the other methods
have.

Choices: the teacher is the linear classifier of the stock model, and not one with attention as in the paper, so that
the full model, and the stage that trains it, are those of the other methods. The attention has two heads. The paper
writes the divergence with the student first; here the teacher is, so that a student must cover what the teacher holds
possible. Fine-tuning takes the recipe's epochs and distillation 5/3 of them, the paper's proportion; linear students
read cached features instead, for the recipe's number of steps in whole epochs, and have a pooler each where the
backbone has one. The frozen model runs without dropout.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from consistentee.data.instances import TaskData
from consistentee.methods.knob_grids import falling_fractions
from consistentee.methods.method import Knob, Method
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, ThresholdRule
from consistentee.rules.signals import normalised_entropy
from consistentee.training.loop import run_stage
from consistentee.training.recipe import Recipe
from consistentee.training.sources import FeatureBatch, TokenBatch, TokenSource
from consistentee.training.stage import Stage
from consistentee.training.stages import (
    cached_rows,
    distillation_loss,
    early_exits,
    train_heads,
    train_last_exit_on,
    training_source,
)

_SPEEDS = (1.001, *falling_fractions(6)[1:], 0.0)
"""From just above the largest normalised entropy down to 0."""


@dataclass(frozen=True)
class FastBERT(Method):
    """Self-distillation, normalised-entropy rule.

    Attributes:
        classifier: what the students are: "attention" is the paper's.
    """

    name: ClassVar[str] = "fastbert"
    paper: ClassVar[str] = "Liu et al., FastBERT, ACL 2020, arXiv 2004.02178"
    knob: ClassVar[Knob] = Knob("speed", _SPEEDS)

    classifier: Literal["attention", "linear"] = "attention"

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Fine-tune the stock model, then distil it into the students."""
        self.check_task(task)
        source = training_source(model, task, recipe)
        train_last_exit_on(model, source, recipe)  # before the students are put in, so that DeeBERT's stage is this one
        if self.classifier == "attention":
            _distil_attention(model, source, recipe)
        else:
            _distil_linear(model, source, recipe)
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the normalised entropy is below ``knob``."""
        self.check_knob(model, knob)
        return ThresholdRule(normalised_entropy, knob, exit_when="below")


def _distil_attention(model: MultiExitModel, source: TokenSource, recipe: Recipe) -> None:
    """Train students that read every token: the frozen backbone runs again for every batch."""
    model.use_classifier(ClassifierSpec("attention", width=128, attention_heads=2, at_last_layer=False), recipe.seed)
    stage = Stage(
        name="self-distillation",
        loss=_loss_on_tokens,
        trains=early_exits(model, "classifiers.{}."),
        epochs=math.ceil(recipe.epochs * 5 / 3),
        batch_size=recipe.batch_size,
        learning_rate=recipe.head_learning_rate,
        head_learning_rate=recipe.head_learning_rate,
        dropout=False,
    )
    run_stage(model, source, stage, recipe)


def _distil_linear(model: MultiExitModel, source: TokenSource, recipe: Recipe) -> None:
    """Train students that read the pooled vector, on what the frozen backbone left once."""
    model.use_own_poolers()
    rows = cached_rows(model, source, recipe)
    students = early_exits(model, "poolers.{}.", "classifiers.{}.")
    train_heads(model, rows, _loss_on_features, recipe, name="self-distillation", trains=students)


def _loss_on_tokens(model: MultiExitModel, batch: TokenBatch) -> Tensor:
    return distillation_loss(model(batch.tokens).logits)


def _loss_on_features(model: MultiExitModel, batch: FeatureBatch) -> Tensor:
    return distillation_loss(model.read_vectors(batch.outputs.vectors).logits)
