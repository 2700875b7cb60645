"""DeeBERT (Xin et al., ACL 2020, arXiv 2004.12993): off-ramps on a frozen fine-tuned model, exit on low entropy.

Training (section 3.1): stage 1 fine-tunes the backbone and the last classifier; stage 2 freezes them and trains the
other classifiers on ``sum_{t<L} CE_t``. Rule (section 3.2): exit if the entropy of the classifier, in nats, is below a
threshold S.

Choices: an off-ramp has the shape of the model's own classification head, with a pooler if the backbone has one. Its
pooler starts from the one that stage 1 fine-tuned; in the authors' code it starts from the pretrained one. Stage 2 uses
cached features, computed in eval mode, for the recipe's frozen steps at its frozen rate; in the paper it is as long as
stage 1, at the same rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import consistentee as ee
from consistentee.signals import entropy, entropy_thresholds
from consistentee.training import ExitNetwork, layer_losses, train_early_exits, train_last_exit, training_source


@dataclass(frozen=True)
class DeeBERT(ee.Method):
    """Two-stage training, entropy rule.

    Attributes:
        classifier: the network of the off-ramps.
    """

    name: ClassVar[str] = "deebert"
    paper: ClassVar[str] = "Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993"
    version: ClassVar[int] = 2
    knob: ClassVar[ee.Knob] = ee.Knob("entropy", entropy_thresholds(2), refined=True)

    classifier: ExitNetwork = "linear"

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        train_last_exit(model, source, recipe)
        train_early_exits(model, source, _off_ramp_loss, recipe, name="off-ramps", network=self.classifier)
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return entropy_thresholds(model.num_labels)

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(entropy, knob, exit_when="below")


def _off_ramp_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return layer_losses(logits, labels)[:, :-1].sum(dim=1).mean()
