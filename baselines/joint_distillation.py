"""joint-distillation: exits distilled from the fine-tuned model while the backbone moves, mostly where rows exit.

This method is ours, and it is not ConsistentEE: it has no policy, no Memorized Layer and no reward. It shares the
principle that only the classifier at a row's exit has to be right, for all operating points at once, in two stages:

1. The stock model is fine-tuned (shared with DeeBERT and FastBERT). Its outputs for the training rows are the teacher.
2. Backbone and exits are trained together, the backbone at half the rate. At every layer a row's loss is half its
   cross-entropy and half ``KL(teacher || exit)``. A share of 0.3 of its weight goes to the layers at which it exits
   with random thresholds, the rest is spread evenly.

Rule: exit if the largest probability is above a threshold, the knob.

Choices: thresholds are drawn from the confidences of the batch before layer L, so that they split its rows at any
scale. Exits read all tokens, as FastBERT's; layer L keeps the fine-tuned linear classifier. Exits learn at 1e-3 at
most. Stage 2 takes half of the recipe's epochs, rounded up. COSEE (AAAI 2025) draws thresholds too, from the pretrained
model, without a teacher, with a weight that falls with the distance from the exit.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional

from consistentee import ExitRule, Knob, Method, MultiExitModel, Recipe, TaskData, ThresholdRule, training
from consistentee.signals import even_log_odds, top_probability

_FASTEST = 1e-3  # the highest peak learning rate of exits
_THRESHOLDS_DRAWN = 8  # in each batch


@dataclass(frozen=True)
class JointDistillation(Method):
    """Distillation into exits, weighted by where rows exit; confidence rule.

    Attributes:
        classifier: the kind of the exits before layer L.
        at_exit: share of a row's weight at the layers where it exits; the rest is spread evenly.
        distilled: share of the teacher in a loss; the rest is the label's.
        backbone_rate: rate of the second stage, as a share of the recipe's.
        epochs_share: length of the second stage, as a share of the recipe's epochs.
    """

    name: ClassVar[str] = "joint-distillation"
    paper: ClassVar[str] = "ours: FastBERT's exits (ACL 2020), distilled while the backbone trains"
    version: ClassVar[int] = 3
    knob: ClassVar[Knob] = Knob("confidence", (0.0, *even_log_odds(-4, 12, 97), 1.0))

    classifier: Literal["attention", "linear"] = "attention"
    at_exit: Annotated[float, Field(ge=0, le=1)] = 0.3
    distilled: Annotated[float, Field(ge=0, le=1)] = 0.5
    backbone_rate: PositiveFloat = 0.5
    epochs_share: PositiveFloat = 0.5

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        source = training.training_source(model, task, recipe)
        training.train_last_exit(model, source, recipe)
        teacher = training.recorded_logits(model, source, recipe)[:, -1].log_softmax(dim=-1)
        training.use_exit_network(model, self.classifier, recipe)
        loss, key = partial(taught_loss, self, teacher), {"at_exit": self.at_exit, "distilled": self.distilled}
        slower = replace(
            training.token_stage("joint-distillation", loss, recipe, stage_key=key),
            epochs=math.ceil(recipe.epochs * self.epochs_share),
            learning_rate=recipe.learning_rate * self.backbone_rate,
            head_learning_rate=min(recipe.head_learning_rate, _FASTEST),
        )
        training.run_stage(model, source, slower, recipe)
        return model

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        return ThresholdRule(top_probability, knob, exit_when="above")


def taught_loss(
    method: JointDistillation, teacher: Tensor, model: MultiExitModel, batch: training.TokenBatch
) -> Tensor:
    """Compute the mean over rows of the label's and the teacher's losses, weighted by where rows exit.

    ``teacher``: log-probabilities of the fine-tuned model on all training rows, [N, classes].
    """
    logits = model(batch.tokens).logits
    students = logits.log_softmax(dim=-1)
    taught = teacher[batch.rows].to(students.device).unsqueeze(1).expand_as(students)
    divergence = functional.kl_div(students, taught, log_target=True, reduction="none").sum(dim=-1)
    losses = (1 - method.distilled) * training.layer_losses(logits, batch.labels) + method.distilled * divergence
    doubt = 1 - logits.detach().softmax(dim=-1).amax(dim=-1)
    return (exit_shares(doubt, method.at_exit) * losses).sum(dim=1).mean()


def exit_shares(doubt: Tensor, at_exit: float) -> Tensor:
    """Compute the weight of a row's loss at every exit: float [rows, exits], rows sum to 1.

    Args:
        doubt: 1 - the largest probability, detached: [rows, exits].
        at_exit: share of the weight at the exits that rows take with random thresholds.
    """
    exits = doubt.shape[1]
    if exits == 1:
        return torch.ones_like(doubt)
    candidates = doubt[:, :-1].flatten()
    thresholds = candidates[torch.randint(len(candidates), (_THRESHOLDS_DRAWN,)).to(doubt.device)]
    leaves = doubt < thresholds.view(-1, 1, 1)
    leaves[..., -1] = True
    taken = functional.one_hot(leaves.int().argmax(dim=-1), exits).to(doubt.dtype).mean(dim=0)
    return at_exit * taken + (1 - at_exit) / exits
