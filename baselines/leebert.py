"""LeeBERT (Zhu, ACL 2021): exits teach each other, with learned weights of the losses.

Training: each exit learns from the labels and from every other exit: L cross-entropies and L(L-1) distillations. The
weights of these L*L terms are optimised on held-out rows (bi-level optimisation). Rule: as PABEE, exit once the answer
has not changed for ``patience`` layers.

Outer gradient: a step ``theta - eta * sum_i w_i grad L_i`` changes the held-out loss by ``-eta * <grad L_val, grad
L_i>`` per unit of w_i. With g = grad L_val this inner product is the slope of L_i along g, so all of them follow from
the terms at ``theta + epsilon * g`` and ``theta - epsilon * g`` (the finite difference of DARTS, Liu et al., ICLR
2019), with teachers fixed. This costs one forward and backward pass on held-out rows and three forward passes on the
batch. It is done every fifth step, in eval mode, because dropout would hide a slope.

Choices: the held-out loss is the mean cross-entropy over exits; a distillation is KL(teacher || student) at temperature
1 and does not train the teacher; a tenth of the training rows is held out. The weights are two softmaxes, over the
cross-entropies and over the distillations, each with the sum L. They move by exponentiated gradient, scaled so that the
largest step is ``weight_rate``. Their scores are a parameter of the model during training, so that checkpoints include
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

import consistentee as ee
from consistentee import training

SCORES = "lesson_scores"
_STEP_LENGTH = 0.01  # norm of the finite difference's step (DARTS)
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class LeeBERT(ee.Method):
    """Mutual distillation with learned loss weights, patience rule.

    Attributes:
        held_out: fraction of the training rows on which the weights are optimised.
        weight_every: steps between two updates of the weights.
        weight_rate: largest change of a weight's logarithm at one update, before the sum is restored.
    """

    name: ClassVar[str] = "leebert"
    paper: ClassVar[str] = "Zhu, LeeBERT, ACL 2021"
    knob: ClassVar[ee.Knob] = ee.Knob("patience", tuple(float(patience) for patience in range(1, 12)))
    no_effect_if: ClassVar[dict[str, tuple[str, object]]] = {"weight_every": ("weight_rate", 0)}

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    weight_every: PositiveInt = 5
    weight_rate: NonNegativeFloat = 0.1

    def fit(self, model: ee.MultiExitModel, task: ee.TaskData, recipe: ee.Recipe) -> ee.MultiExitModel:
        trained_on, held_out = training.hold_out(training.training_source(model, task, recipe), self.held_out)
        model.register_parameter(SCORES, nn.Parameter(torch.zeros(model.num_layers, model.num_layers)))
        loss = partial(_loss, self, held_out)
        key = {"every": self.weight_every, "rate": self.weight_rate, "held_out": held_out.fingerprint()}
        stage = training.token_stage("mutual-distillation", loss, recipe, also_trains=(SCORES,), stage_key=key)
        training.run_stage(model, trained_on, stage, recipe)
        # A new weighting takes a pass with gradients on held-out rows, and three without on the batch.
        training.count_rows(2 * recipe.epochs * len(trained_on) / self.weight_every, with_gradients=True)
        delattr(model, SCORES)
        return model

    def knob_values(self, model: ee.MultiExitModel) -> Sequence[float]:
        return tuple(float(patience) for patience in range(1, model.num_layers))

    def rule(self, model: ee.MultiExitModel, knob: float) -> ee.ExitRule:
        return ee.ConsecutiveRule(ee.SameAnswerRule(), patience=knob)


def lessons(logits: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    """Compute all terms of the loss, averaged over rows: float [L, L].

    Row t has the losses of exit t: from the labels on the diagonal, from exit s in column s. ``teachers`` are the
    logits of the same exits, [rows, L, classes], without gradient.
    """
    students, taught = logits.log_softmax(dim=-1), teachers.log_softmax(dim=-1)
    teacher_entropy = -(taught.exp() * taught).sum(dim=-1)
    cross_entropy = -torch.einsum("rtc,rsc->rts", students, taught.exp())
    distillation = (cross_entropy - teacher_entropy.unsqueeze(1)).mean(dim=0)
    from_labels = training.layer_losses(logits, labels).mean(dim=0)
    return distillation.fill_diagonal_(0.0) + from_labels.diag_embed()


def lesson_weights(scores: Tensor) -> Tensor:
    """Turn scores [L, L] into positive weights [L, L]: the diagonal sums to L, and so does the rest."""
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    distillation = scores.masked_fill(diagonal, -torch.inf).flatten().softmax(dim=0).view_as(scores)
    return len(scores) * (distillation + scores.diagonal().softmax(dim=0).diag_embed())


def alignment(model: ee.MultiExitModel, batch: training.TokenBatch, held_out: training.TokenBatch) -> Tensor:
    """Compute how fast the held-out loss falls along each term's gradient: ``<grad L_val, grad L_i> / |grad L_val|``.

    The model keeps its parameters, and no gradient is kept. The result is laid out as :func:`lessons`.
    """
    was_training = model.training
    model.eval()
    learning = {name: w for name, w in model.named_parameters() if w.requires_grad}
    held_out_loss = training.layer_losses(model(held_out.tokens).logits, held_out.labels).mean()
    gradients = torch.autograd.grad(held_out_loss, list(learning.values()), allow_unused=True)
    slopes = {name: slope for name, slope in zip(learning, gradients, strict=True) if slope is not None}
    norm = torch.stack([slope.norm() for slope in slopes.values()]).norm().clamp_min(_TINY)

    def lessons_after_step(length: Tensor) -> Tensor:
        moved = {name: learning[name] + length * slope for name, slope in slopes.items()}
        return lessons(functional_call(model, moved, batch.tokens).logits, teachers, batch.labels)

    with torch.no_grad():
        teachers = model(batch.tokens).logits
        ahead, behind = (lessons_after_step(length) for length in (_STEP_LENGTH / norm, -_STEP_LENGTH / norm))
    model.train(was_training)
    return (ahead - behind) / (2 * _STEP_LENGTH)


def _loss(
    method: LeeBERT, held_out: training.TokenSource, model: ee.MultiExitModel, batch: training.TokenBatch
) -> Tensor:
    scores = model.get_parameter(SCORES)
    if batch.step % method.weight_every == 0:
        size = min(len(batch.rows), len(held_out))
        rows = torch.arange(size) + batch.step // method.weight_every * size
        slopes = alignment(model, batch, held_out.batch(rows % len(held_out), batch.step))
        with torch.no_grad():
            scores.add_(method.weight_rate * slopes / slopes.abs().max().clamp_min(torch.finfo(slopes.dtype).tiny))
    logits = model(batch.tokens).logits
    terms = lessons(logits, logits.detach(), batch.labels)
    return (lesson_weights(scores.detach()) * terms).sum()
