"""The first layers of the backbone as a model of their own: the shorter model that people would use instead of exits.

``cut``: embeddings and the first ``depth`` layers with a new classifier, fine-tuned alone by the recipe. Published
tables call it BERT-6L (GPFEE, COSEE) or a truncated model (ElasticBERT).

``cut-distilled``: the same layers of the fine-tuned full model, trained for as long on the same rows. The loss is half
cross-entropy, half ``T^2 KL(full model || cut model)``, as Sun et al. (EMNLP 2019, arXiv 1908.09355) and Sanh et al.
(2019, arXiv 1910.01108) distil on a task. Both halves and T = 2 are defaults of Sanh et al.'s script for SQuAD.

Both return a model of ``depth`` layers, on which all rows stop. One training gives one operating point.

Choices: the full model answers without dropout, once for each row. The classifier of ``cut-distilled`` is new, because
the full model's reads another layer. A training pass counts as the share of layers that ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from consistentee import ClassifierSpec, ExitRule, Knob, Method, MultiExitModel, NeverExit, Recipe, TaskData, training


@dataclass(frozen=True)
class Cut(Method):
    """The first layers of the backbone, fine-tuned alone.

    Attributes:
        depth: number of layers; None for half of them.
        classifier: the network of its only classifier, at its last layer.
    """

    name: ClassVar[str] = "cut"
    paper: ClassVar[str] = "reference: a shorter model; BERT-6L of GPFEE and COSEE"
    knob: ClassVar[Knob] = Knob("layer", (6.0,))
    supports_regression: ClassVar[bool] = True

    depth: PositiveInt | None = None
    classifier: training.ExitNetwork = "linear"

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        short = self._first_layers(model, recipe)
        with training.counting_rows_as(short.num_layers / model.num_layers):
            training.train_last_exit(short, task, recipe)
        return short

    def knob_values(self, model: MultiExitModel) -> Sequence[float]:
        return (float(model.num_layers),)

    def rule(self, model: MultiExitModel, knob: float) -> ExitRule:
        return NeverExit()

    def _first_layers(self, model: MultiExitModel, recipe: Recipe) -> MultiExitModel:
        short = model.first_layers(self.depth or max(1, model.num_layers // 2), recipe.seed)
        if self.classifier != "linear":
            short.use_classifier(ClassifierSpec(self.classifier), recipe.seed)
        return short


@dataclass(frozen=True)
class CutDistilled(Cut):
    """The first layers of the fine-tuned full model, which learn from labels and from its answers.

    Attributes:
        temperature: of both distributions in the distillation.
    """

    name: ClassVar[str] = "cut-distilled"
    paper: ClassVar[str] = "Sun et al., EMNLP 2019, arXiv 1908.09355; Sanh et al., DistilBERT, arXiv 1910.01108"
    supports_regression: ClassVar[bool] = False

    temperature: PositiveFloat = 2.0

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        source = training.training_source(model, task, recipe)
        training.train_last_exit(model, source, recipe)  # before the copy exists, so that methods share this stage
        answers = training.recorded_logits(model, source, recipe)[:, -1]
        short = self._first_layers(model, recipe)
        source = training.training_source(short, task, recipe)
        loss = partial(label_and_answer_loss, answers, self.temperature)
        key = {"answers": answers, "temperature": self.temperature}
        judge = source.judge and replace(source.judge, every_exit=False)
        stage = training.token_stage("distillation", loss, recipe, stage_key=key, judge=judge)
        with training.counting_rows_as(short.num_layers / model.num_layers):
            training.run_stage(short, source, stage, recipe)
        return short


def label_and_answer_loss(
    answers: Tensor, temperature: float, model: MultiExitModel, batch: training.TokenBatch
) -> Tensor:
    """Compute half cross-entropy, half distillation; ``answers`` are the full model's logits [all rows, classes]."""
    logits = model.stock_logits(batch.tokens)
    from_labels = training.layer_losses(logits.unsqueeze(1), batch.labels).mean()
    taught = torch.stack([logits, answers[batch.rows].to(logits.device)], dim=1)
    return (from_labels + training.distillation_loss(taught, temperature)) / 2
