"""CAP with the NSP score (He et al., IJCAI 2025, arXiv 2506.17249): certainty that counts class-irrelevant information.

Training: backbone and all classifiers together, on the mean cross-entropy. With W and b of the classifier and h its
input, ``u = h + W^+ b``. NSP is the share of u that no class reads: the norm of its part in the null space of W divided
by its norm. ``a * NSP`` is appended to the logits as that of one more class, and CAP is the probability of this class.
Rule: exit if CAP is below a threshold.

Choices: training and ``a = 0.1`` follow the authors' code; the paper's own text was not available.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

import consistentee as ee
from consistentee.signals import even_log_odds
from consistentee.training import TokenBatch, layer_losses, run_stage, token_stage, training_source

_ALWAYS = 1.001


@dataclass(frozen=True)
class CAP(ee.Method):
    """Joint training on the mean loss, CAP rule.

    Attributes:
        scale: factor of the NSP score, a.
    """

    name: ClassVar[str] = "cap-nsp"
    paper: ClassVar[str] = "He et al., Improving Prediction Certainty Estimation, IJCAI 2025, arXiv 2506.17249"
    knob: ClassVar[ee.Knob] = ee.Knob("certainty", (_ALWAYS, *even_log_odds(4, -14, 121), 0.0))

    scale: float = 0.1

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        """Train backbone and all classifiers on the mean cross-entropy."""
        run_stage(model, training_source(model, task, recipe), token_stage("joint-mean", _mean_loss, recipe), recipe)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        """Exit if the probability of no class is below ``knob``."""
        return ee.ThresholdRule(partial(_no_class, NullSpaces(model), self.scale), knob, exit_when="below")


class NullSpaces:
    """Null spaces of the linear classifiers of a model, for the NSP score."""

    def __init__(self, model: ee.MultiExitModel) -> None:
        self._parts = [_origin_and_rows(model, layer) for layer in range(1, model.num_layers + 1)]

    def score(self, layer: int, pooled: Tensor) -> Tensor:
        """Compute the NSP score of the inputs of a classifier [rows, width]: 0..1, [rows]."""
        origin, rows = (part.to(pooled.device) for part in self._parts[layer - 1])  # a replay runs on the CPU
        moved = pooled + origin
        unread = moved - (moved @ rows) @ rows.T
        return unread.norm(dim=-1) / moved.norm(dim=-1)


def _no_class(spaces: NullSpaces, scale: float, view: ee.LayerView) -> Tensor:
    extra = scale * spaces.score(view.layer, view.pooled)
    return torch.cat([view.logits, extra.unsqueeze(1)], dim=1).softmax(dim=-1)[:, -1]


@torch.no_grad()
def _origin_and_rows(model: ee.MultiExitModel, layer: int) -> tuple[Tensor, Tensor]:
    """Return ``W^+ b`` [width], and an orthonormal basis of the row space of W [width, rank]."""
    classifier = model.classifier(layer)
    weight, bias = cast(Tensor, classifier.weight), cast(Tensor, classifier.bias)
    return torch.linalg.pinv(weight) @ bias, torch.linalg.qr(weight.T).Q


def _mean_loss(model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    return layer_losses(model(batch.tokens).logits, batch.labels).mean()
