"""CascadeBERT (Li et al., EMNLP Findings 2021, arXiv 2012.14682): a cascade of complete models.

Rule: a small complete model answers first; if its largest probability is above a threshold the row exits, otherwise it
starts again in the full model. Training: both models are fine-tuned. The small one's loss has a difficulty-aware term
for every pair of an easy and a hard row: ``max(0, margin - (confidence of the easy one - confidence of the hard
one))``, with a margin and a weight of 0.5 as in the released script.

Choices:

* The paper's small model is pretrained with L/6 layers. Here the companion is a copy of the first L/3 layers, because
  few backbones have such a sibling.
* A row is hard if a model of the companion's shape that was not trained on it answers it wrong (cross-fitting).
* The term is the mean over all pairs of a batch; the released code draws one hard row for each easy one.
* Only the companion has the term, because only its confidence is used.

The other classifiers are not trained, so a trace is valid at the companion's last layer and at full depth alone.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

import consistentee as ee
from consistentee import training
from consistentee.signals import even_log_odds, top_probability


@dataclass(frozen=True)
class CascadeBERT(ee.Method):
    """A companion with difficulty-aware confidence, then the stock model.

    Attributes:
        companion_layers: first layers of the model that the companion starts from; None for a third of L, at least 1.
        margin, margin_weight: of the difficulty-aware regularisation.
        folds: of the cross-fitting that finds the hard rows.
    """

    name: ClassVar[str] = "cascade-bert"
    paper: ClassVar[str] = "Li et al., CascadeBERT, EMNLP Findings 2021, arXiv 2012.14682"
    knob: ClassVar[ee.Knob] = ee.Knob("threshold", (0.0, *even_log_odds(-3, 12, 76), 1.0))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = dict.fromkeys(("margin", "folds"), ("margin_weight", 0))

    companion_layers: int | None = None
    margin: NonNegativeFloat = 0.5
    margin_weight: NonNegativeFloat = 0.5
    folds: Annotated[int, Field(ge=2)] = 3

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        layers = max(1, model.num_layers // 3) if self.companion_layers is None else self.companion_layers
        companion = model.first_layers(layers, recipe.seed)
        training.train_last_exit(model, task, recipe)  # before they are joined, so that methods share this stage
        source = training.training_source(companion, task, recipe)
        with training.counting_rows_as(companion.num_layers / model.num_layers):
            hard = hard_rows(companion, source, recipe, self.folds)
            loss = partial(_companion_loss, hard, self.margin, self.margin_weight)
            key = {"hard": hard, "margin": self.margin, "margin_weight": self.margin_weight}
            stage = training.token_stage("companion", loss, recipe, stage_key=key)
            training.run_stage(companion, source, stage, recipe)
        ee.add_companion(model, companion)
        return model

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.SomeLayersRule(ee.ThresholdRule(top_probability, knob, exit_when="above"), model.companion_layers)


def hard_rows(companion: ee.MultiExitModel, source: training.TokenSource, recipe: ee.Recipe, folds: int) -> Tensor:
    """Compute which training rows a companion that was trained on the other folds answers wrong: bool [rows].

    Every fold starts from the weights of ``companion``, which it has again afterwards.
    """
    start = companion.clone_weights()
    fold_of_row = torch.arange(len(source)) % folds
    fold_of_row = fold_of_row[torch.randperm(len(source), generator=torch.Generator().manual_seed(recipe.seed))]
    hard = torch.empty(len(source), dtype=torch.bool)
    for fold in range(folds):
        companion.load_state_dict(start)
        seen = source.select((fold_of_row != fold).nonzero().flatten())
        held_out = source.select((fold_of_row == fold).nonzero().flatten())
        training.train_last_exit(companion, seen, replace(recipe, max_rows=None))
        answers = training.recorded_logits(companion, held_out, recipe)[:, -1].argmax(dim=-1)
        hard[fold_of_row == fold] = answers != held_out.labels
    companion.load_state_dict(start)
    return hard


def difficulty_loss(logits: Tensor, hard: Tensor, margin: float) -> Tensor:
    """Compute the mean hinge over all pairs of an easy and a hard row; 0 if a batch has only one kind.

    The confidence of an easy row should exceed that of a hard one by the margin.
    """
    confidence = logits.softmax(dim=-1).amax(dim=-1)
    gaps = confidence[~hard].unsqueeze(1) - confidence[hard]
    return (margin - gaps).clamp_min(0).sum() / max(1, gaps.numel())


def _companion_loss(
    hard: Tensor, margin: float, weight: float, model: ee.MultiExitModel, batch: training.TokenBatch
) -> Tensor:
    logits = model.stock_logits(batch.tokens)
    task_loss = training.layer_losses(logits.unsqueeze(1), batch.labels).mean()
    return task_loss + weight * difficulty_loss(logits, hard[batch.rows].to(logits.device), margin)
