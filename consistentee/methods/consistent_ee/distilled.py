"""consistentee-distilled: exits that a fine-tuned model teaches, each on the rows that will leave there.

ConsistentEE asks only the classifier at a row's exit to be right, and its policy says where that is: at one price of a
layer, for one model. This variant keeps the principle for every operating point at once, in two stages:

1. the stock model is fine-tuned (the stage that DeeBERT and FastBERT share), and what it says of the training rows is
   kept: the teacher;
2. backbone and exits are trained together, the backbone at half the rate. At every layer a row's loss is half its
   cross-entropy and half ``KL(teacher || exit)``. It weighs, by 0.3, as often as the row leaves at that layer under
   thresholds drawn at random, and by 0.7 as at every other layer, so that no exit forgets the rows of the others.

Rule: leave where the largest probability is above a threshold, which is the knob.

Choices. Thresholds are drawn from what the exits before layer L say of the batch, so that they part its rows whatever
the scale of its certainty, which grows in training. Exits look at all tokens, as FastBERT's do, since early layers have
not gathered in one vector what the label needs; layer L keeps the linear classifier that was fine-tuned, so that the
full model has the stock one's shape. They learn at no more than 1e-3, since they are networks and no linear heads.
Stage 2 takes half of the recipe's epochs, rounded up. COSEE (AAAI 2025) draws thresholds too; it trains from the
pretrained model, without a teacher, and lets a weight fall off with the distance from the exit.
docs/methods.md tells what each part is worth, on validation and on test rows.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from consistentee.data.instances import TaskData
from consistentee.errors import UserError
from consistentee.methods.consistent_ee.instances import ConsistentEECurve
from consistentee.methods.knob_grids import even_log_odds
from consistentee.methods.method import Knob, Method
from consistentee.methods.policy import PolicyInputs
from consistentee.methods.reward import exit_shares
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, ThresholdRule
from consistentee.rules.signals import top_probability
from consistentee.training.loop import run_stage
from consistentee.training.recipe import Recipe
from consistentee.training.sources import TokenBatch, TokenSource
from consistentee.training.stages import (
    layer_losses,
    recorded_logits,
    token_stage,
    train_last_exit_on,
    training_source,
)

_FASTEST = 1e-3
"""The highest peak learning rate of exits."""


@dataclass(frozen=True)
class ConsistentEEDistilled(Method):
    """Distillation into exits, weighted by where rows leave; confidence rule.

    Attributes:
        classifier: what the exits before layer L are.
        at_exit: share of a row's weight that goes to the layers where it leaves; the rest is spread evenly.
        distilled: share of the teacher in a loss; the rest is the label's.
        backbone_rate: of the second stage, as a share of the recipe's.
        epochs_share: length of the second stage, as a share of the recipe's epochs.
    """

    name: ClassVar[str] = "consistentee-distilled"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) for all exits at once, distilled from the fine-tuned model"
    version: ClassVar[int] = 3
    knob: ClassVar[Knob] = Knob("confidence", (0.0, *even_log_odds(-4, 12, 97), 1.0))

    classifier: Literal["attention", "linear"] = "attention"
    at_exit: float = 0.3
    distilled: float = 0.5
    backbone_rate: float = 0.5
    epochs_share: float = 0.5

    def __post_init__(self) -> None:
        for share in ("at_exit", "distilled"):
            if not 0 <= getattr(self, share) <= 1:
                raise UserError(f"{self.name}: {share} is a share, between 0 and 1, got {getattr(self, share)}")
        if self.backbone_rate <= 0 or self.epochs_share <= 0:
            raise UserError(f"{self.name}: backbone_rate and epochs_share must be above 0")

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Fine-tune the stock model, keep what it says, and teach it to the exits."""
        self.check_task(task)
        self.teach_exits(model, training_source(model, task, recipe), recipe)
        return model

    def teach_exits(self, model: MultiExitModel, source: TokenSource, recipe: Recipe) -> None:
        """As :meth:`fit`, on rows that are tokens already."""
        train_last_exit_on(model, source, recipe)
        teacher = recorded_logits(model, source, recipe)[:, -1].log_softmax(dim=-1)
        if self.classifier != "linear":
            model.use_classifier(ClassifierSpec(self.classifier, at_last_layer=False), recipe.seed)
        loss = partial(taught_loss, self, teacher)
        slower = replace(
            token_stage("consistent-distillation", loss, recipe, details={"method": repr(self)}),
            epochs=math.ceil(recipe.epochs * self.epochs_share),
            learning_rate=recipe.learning_rate * self.backbone_rate,
            head_learning_rate=min(recipe.head_learning_rate, _FASTEST),
        )
        run_stage(model, source, slower, recipe)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        """Exit where the largest probability is above ``knob``."""
        self.check_knob(model, knob)
        return ThresholdRule(top_probability, knob, exit_when="above")


@dataclass(frozen=True)
class ConsistentEEDistilledCurve(ConsistentEECurve):
    """The exits of consistentee-distilled, left by the policy of consistentee-curve: one for all prices of a layer.

    The exits are taught with that method's defaults. There is no stage 3, and no cross-fitting: ``alpha``,
    ``joint_epochs``, ``joint_learning_rate``, ``refit_policy`` and ``folds`` are not read.
    """

    name: ClassVar[str] = "consistentee-distilled-curve"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024), distilled, with a policy conditioned on alpha"
    version: ClassVar[int] = 3

    policy_reads: PolicyInputs = "state+confidence"
    memorized_layer: Literal["train"] = "train"

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Teach the exits, then fit the policy to them."""
        self.check_task(task)
        source = training_source(model, task, recipe)
        ConsistentEEDistilled().teach_exits(model, source, recipe)
        self.learn_policy(model, source, None, recipe)
        return model


def taught_loss(method: ConsistentEEDistilled, teacher: Tensor, model: MultiExitModel, batch: TokenBatch) -> Tensor:
    """Return the mean over rows of label's and teacher's losses, weighted by where rows leave.

    ``teacher``: log-probabilities of the fine-tuned model on all training rows, [N, classes].
    """
    logits = model(batch.tokens).logits
    says = logits.log_softmax(dim=-1)
    taught = teacher[batch.rows].to(says.device).unsqueeze(1).expand_as(says)
    divergence = functional.kl_div(says, taught, log_target=True, reduction="none").sum(dim=-1)
    losses = (1 - method.distilled) * layer_losses(logits, batch.labels) + method.distilled * divergence
    doubt = 1 - logits.detach().softmax(dim=-1).amax(dim=-1)
    return (exit_shares(doubt, method.at_exit) * losses).sum(dim=1).mean()
