"""DE3-BERT (He et al., 2024, arXiv 2402.05948): entropy, and the distance of the nearest class from the second.

Training: backbone and all classifiers together, on cross-entropy and a distance-aware regulariser. For it every layer
before L has a linear map into a metric space, with a prototype of every class. Rule: with r1 <= r2 the distances from
the nearest and the second prototype, ``DR = 0.5 (1 + (r1 - r2) / max(r1, r2))``, and EDR the harmonic mean of DR and
the entropy; exit if EDR is below a threshold.

Choices, because the formulas of training were not available: the regulariser is the loss of prototypical networks
(Snell et al., NeurIPS 2017), cross-entropy on ``softmax_k(-d_k^2)``, which also trains the prototypes (the paper moves
them by averages). Both losses are weighted by depth and added. The entropy is divided by ln C; lambda,
the weight of DR in the mean, is 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import consistentee as ee
from consistentee.signals import falling_fractions, normalised_entropy
from consistentee.training import TokenBatch, depth_weighted_loss, layer_losses, run_stage, token_stage, training_source

_METRIC, _PROTOTYPES = "metric", "prototypes"
_WIDTH = 64  # of the metric space
_OUT_OF_REACH = 1.001


@dataclass(frozen=True)
class DE3BERT(ee.Method):
    """Joint training with prototypes, rule on entropy and distances."""

    name: ClassVar[str] = "de3-bert"
    paper: ClassVar[str] = "He et al., DE3-BERT, 2024, arXiv 2402.05948"
    knob: ClassVar[ee.Knob] = ee.Knob("threshold", (_OUT_OF_REACH, *falling_fractions(6)[1:], 0.0))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training_source(model, task, recipe)
        model.add_head(_METRIC, ee.HeadSpec(outputs=_WIDTH), seed=recipe.seed)
        spec = ee.HeadSpec(outputs=model.num_labels, extra_inputs=_WIDTH, reads_pooled=False)
        model.add_head(_PROTOTYPES, spec, seed=recipe.seed)
        trains = (f"exit_heads.{_METRIC}.", f"exit_heads.{_PROTOTYPES}.")
        run_stage(model, source, token_stage("prototypes", _loss, recipe, also_trains=trains), recipe)
        _complete_squares(model)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(distance_enhanced_entropy, knob, exit_when="below")


def distance_enhanced_entropy(view: ee.LayerView) -> Tensor:
    """Compute EDR, 0 (certain) to 1: float [rows]."""
    mapped = view.head(_METRIC)
    # A linear layer with the prototypes p as weights and a bias of -|p|^2 / 2 gives half of |z|^2 - |z - p|^2.
    squares = mapped.square().sum(dim=-1, keepdim=True) - 2 * view.head(_PROTOTYPES, mapped)
    nearest, second = squares.clamp_min(0).sqrt().topk(2, dim=-1, largest=False).values.unbind(dim=-1)
    return 2 / (1 / distance_ratio(nearest, second) + 1 / normalised_entropy(view))  # 0 if one of them is 0


def distance_ratio(nearest: Tensor, second: Tensor) -> Tensor:
    """Compute DR of distances [rows]: 0 at a prototype, 0.5 if two are equally far."""
    return 0.5 * (1 + (nearest - second) / second.clamp_min(torch.finfo(second.dtype).tiny))


def _prototypes(model: ee.MultiExitModel, layer: int) -> Tensor:
    return model.head(_PROTOTYPES).modules_by_layer[layer - 1].get_parameter("weight")


def _loss(model: ee.MultiExitModel, batch: TokenBatch) -> Tensor:
    outputs = model(batch.tokens)
    of_classifiers = depth_weighted_loss(layer_losses(outputs.logits, batch.labels))
    before_last = range(1, model.num_layers)
    mapped = model.head(_METRIC).at_layers(before_last, outputs.pooled[:, :-1]).unsqueeze(2)
    prototypes = torch.stack([_prototypes(model, layer) for layer in before_last])
    nearness = -(mapped - prototypes).square().sum(dim=-1)  # [rows, L - 1, classes]
    of_prototypes = depth_weighted_loss(layer_losses(nearness, batch.labels))
    return of_classifiers + of_prototypes


@torch.no_grad()
def _complete_squares(model: ee.MultiExitModel) -> None:
    """Set the biases of the prototypes p to -|p|^2 / 2, so that the heads give squared distances."""
    for layer in range(1, model.num_layers + 1):
        bias = model.head(_PROTOTYPES).modules_by_layer[layer - 1].get_parameter("bias")
        bias.copy_(-0.5 * _prototypes(model, layer).square().sum(dim=-1))
