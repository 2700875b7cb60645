"""BERxiT (Xin et al., EACL 2021): alternating training, and a learned estimate of whether the classifier is wrong.

Training (section 3.2): even steps use CE_L, odd steps the sum over all exits. Rule (section 3.3, "learning to exit"):
one linear layer shared by all exits reads the pooled vector and estimates ``1[argmax_t != y]``, with the squared error
as its loss at every step; exit if the estimate is below a threshold.

Choice: the estimate reads detached features, so that it does not train the backbone. Every exit has its own pooler, as
in the authors' code.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

import consistentee as ee
from consistentee.signals import even_log_odds, head_probability, top_probability
from consistentee.training import TokenBatch, layer_losses, run_stage, token_stage, training_source

_UNCERTAINTY = "uncertainty"


@dataclass(frozen=True)
class BERxiT(ee.Method):
    """Alternating training, learning-to-exit or confidence rule.

    Attributes:
        signal: "learned" reads the estimate; "top_probability" reads ``1 - max p``, the rule of the authors' code for
            classification.
    """

    name: ClassVar[str] = "berxit"
    paper: ClassVar[str] = "Xin et al., BERxiT, EACL 2021"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("uncertainty", (1.0, *even_log_odds(9, -9, 73), 0.0))

    signal: Literal["learned", "top_probability"] = "learned"

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        model.use_own_poolers()
        model.add_head(_UNCERTAINTY, ee.HeadSpec(shared=True), seed=recipe.seed)
        trains = (f"exit_heads.{_UNCERTAINTY}.",)
        # Both rules share the stage.
        stage = token_stage("alternating", _alternating_loss, recipe, also_trains=trains, shared=True)
        run_stage(model, source, stage, recipe)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        if self.signal == "top_probability":
            return ee.ThresholdRule(lambda view: 1 - top_probability(view), knob, exit_when="below")
        return ee.ThresholdRule(head_probability(_UNCERTAINTY), knob, exit_when="below")


def _alternating_loss(model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    outputs = model(batch.tokens)
    losses = layer_losses(outputs.logits, batch.labels).mean(dim=0)
    task_loss = losses[-1] if batch.step % 2 == 0 else losses.sum()
    pooled = outputs.pooled[:, :-1].detach()
    guess = model.head(_UNCERTAINTY).at_layers(range(1, model.num_layers), pooled).sigmoid()
    wrong = (outputs.logits[:, :-1].argmax(dim=-1) != batch.labels.unsqueeze(1)).to(guess.dtype)
    return task_loss + functional.mse_loss(guess, wrong, reduction="none").sum(dim=1).mean()
