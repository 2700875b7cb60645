"""ZTW (Wolczyk et al., NeurIPS 2021, arXiv 2106.05409, "Zero Time Waste"): later exits reuse earlier predictions.

Training, three stages: the backbone and the last classifier are fine-tuned; then each head before layer L learns on its
cross-entropy, reading its layer and the logits of the head before (cascade connections), with the backbone frozen; then
at every layer m the weights of an ensemble of the heads so far learn on the cross-entropy of
``softmax(mean_{j<=m} exp(w_mj) log p_j + b_m)``. Rule: exit if the largest probability of the ensemble is above a
threshold; the answer is the ensemble's. Layer L answers alone.

Choices: logits are passed on normalised (LayerNorm) and without a gradient, and w starts from N(0, 0.01), as in the
authors' code. A head has a pooler if the backbone has one, starting from the fine-tuned one. The frozen stages use
cached features, for the recipe's frozen steps each. A layer computes the outputs of earlier heads again.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import consistentee as ee
from consistentee import training
from consistentee.signals import even_log_odds, top_probability


class EnsembleClassifier(ee.InternalClassifier):
    """A linear head that also reads the logits of the head before, and the ensemble of the heads so far."""

    reads_history: ClassVar[bool] = True

    def __init__(self, spec: ee.ClassifierSpec, place: ee.ExitPlace) -> None:
        super().__init__(spec, place)
        # A tuple, so that the heads belong to their own exits alone.
        self._heads = (*(other for other in place.before if isinstance(other, EnsembleClassifier)), self)
        self.output = place.output_layer(place.width + (place.num_labels if place.before else 0))
        self.exponents = nn.Parameter(torch.empty(place.layer).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(place.num_labels))

    def head_logits(self, history: Tensor) -> Tensor:
        """Return the logits of heads 1..m, of pooled vectors [rows, m, width]: [rows, m, classes]."""
        logits: list[Tensor] = []
        for head, pooled in zip(self._heads, history.unbind(dim=1), strict=True):
            parts = [head.dropout(pooled)]
            if logits:
                parts.append(functional.layer_norm(logits[-1].detach(), logits[-1].shape[-1:]))
            logits.append(head.output(torch.cat(parts, dim=-1)))
        return torch.stack(logits, dim=1)

    def average(self, logits: Tensor) -> Tensor:
        """Return the logits of the ensemble [rows, classes], given those of heads 1..m [rows, m, classes]."""
        return (self.exponents.exp().unsqueeze(1) * logits.log_softmax(dim=-1)).mean(dim=1) + self.bias

    def forward(self, layer: ee.ReadableLayer) -> Tensor:
        return self.average(self.head_logits(layer.history))


@dataclass(frozen=True)
class ZTW(ee.Method):
    """Cascaded heads on a frozen fine-tuned model, ensembles of them, confidence rule."""

    name: ClassVar[str] = "ztw"
    paper: ClassVar[str] = "Wolczyk et al., Zero Time Waste, NeurIPS 2021, arXiv 2106.05409"
    knob: ClassVar[ee.Knob] = ee.Knob("confidence", (0.0, *even_log_odds(-4, 12, 97), 1.0))

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        source = training.training_source(model, task, recipe)
        training.train_last_exit(model, source, recipe)
        model.use_classifier(ee.ClassifierSpec("ensemble", at_last_layer=False), recipe.seed)
        model.use_own_poolers()
        rows = training.cached_rows(model, source, recipe)
        heads = training.early_exits(model, "poolers.{}.", "classifiers.{}.output.")
        ensembles = training.early_exits(model, "classifiers.{}.exponents", "classifiers.{}.bias")
        training.train_heads(model, rows, _heads_loss, recipe, name="cascaded-heads", trains=heads)
        training.train_heads(model, rows, _ensembles_loss, recipe, name="ensembles", trains=ensembles)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ThresholdRule(top_probability, knob, exit_when="above")


def head_logits(model: ee.MultiExitModel, batch: training.FeatureBatch) -> Tensor:
    """Compute the logits of all heads before layer L: [rows, L - 1, classes]."""
    vectors, layers = batch.outputs.vectors, range(1, model.num_layers)
    pooled = torch.stack([model.apply_pooler(t, vectors[:, t - 1]) for t in layers], dim=1)
    return _ensemble(model, model.num_layers - 1).head_logits(pooled)


def _ensemble(model: ee.MultiExitModel, layer: int) -> EnsembleClassifier:
    return cast(EnsembleClassifier, model.classifier(layer))


def _heads_loss(model: ee.MultiExitModel, batch: training.FeatureBatch) -> Tensor:
    return training.layer_losses(head_logits(model, batch), batch.labels).mean()


def _ensembles_loss(model: ee.MultiExitModel, batch: training.FeatureBatch) -> Tensor:
    logits = head_logits(model, batch)
    averages = [_ensemble(model, t).average(logits[:, :t]) for t in range(1, model.num_layers)]
    return training.layer_losses(torch.stack(averages, dim=1), batch.labels).mean()
