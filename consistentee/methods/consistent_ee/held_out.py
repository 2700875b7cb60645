"""consistentee-held-out: a ConsistentEE policy that learns on rows which the exits have not seen.

On its own training rows nearly every late exit is right, so a policy that learns there, from labels, finds that depth
never pays, and on new rows it exits too early. Joint training, the paper's stage 1, also costs the last exit accuracy
on tasks of many classes. So here:

1. the stock model is fine-tuned and frozen (shared with DeeBERT and FastBERT); early exits are distilled from its last
   one until they have converged: students that attend, as FastBERT's, for the recipe's ``frozen_steps``;
2. the policy learns on the texts of the validation rows, with ConsistentEE's reward for prices drawn at random. The
   right answer is the last exit's: few rows tell two exits apart by their labels, many by their answers. The Memorized
   Layer is then the first from which on all exits answer as the last. A few hundred rows are few, so the policy is
   linear in the exit's confidence, and one for all layers: ten numbers.

What is rewarded is the answer of the exit that the policy takes, as in the paper; there is no stage 3, since the exits
already answer as the last one wherever they can. Labels of validation rows choose the knob, as for every method. With
the last exit's answers, training texts do as well (``results/README.md``).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from consistentee import HeadSpec, MultiExitModel, Recipe, TaskData
from consistentee.methods.consistent_ee.instances import ConsistentEECurve
from consistentee.training import (
    ExitNetwork,
    recorded_logits,
    student_loss,
    train_early_exits,
    train_last_exit,
    training_source,
    validation_source,
)


@dataclass(frozen=True)
class ConsistentEEHeldOut(ConsistentEECurve):
    """Distilled exits on a frozen fine-tuned model; one policy for all prices, learnt on other texts.

    ``alpha``, ``refit_policy`` and the parameters of stage 3, ``joint_...``, have no effect.

    Attributes:
        classifier: the network of the exits before layer L.
        policy_rows: the rows whose texts the policy learns on; "training" shows what held-out ones are worth.
    """

    name: ClassVar[str] = "consistentee-held-out"
    paper: ClassVar[str] = "ours: ConsistentEE (AAAI 2024) with a policy learnt on held-out rows"

    classifier: ExitNetwork = "attention"
    policy_rows: Literal["validation", "training"] = "validation"

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Fine-tune the stock model, distil it into the exits, and fit the policy to the texts of validation rows."""
        source = training_source(model, task, recipe)
        train_last_exit(model, source, recipe)
        train_early_exits(model, source, student_loss, recipe, name="self-distillation", network=self.classifier)
        rows = validation_source(model, task, recipe) if self.policy_rows == "validation" else source
        answers = recorded_logits(model, rows, recipe)[:, -1].argmax(dim=-1)
        self.learn_policy(model, replace(rows, labels=answers), recipe)
        return model

    def policy_spec(self) -> HeadSpec:
        """Return a linear policy for all layers."""
        return replace(super().policy_spec(), hidden=None, shared=True)
