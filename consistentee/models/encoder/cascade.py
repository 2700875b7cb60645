"""A companion for a model: a smaller complete model that runs before it (see :mod:`consistentee.backbones.cascade`)."""

from torch import nn

from consistentee.backbones.cascade import CascadeStepper
from consistentee.backbones.encoders import stepper_for
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel


def add_companion(model: MultiExitModel, companion: MultiExitModel) -> None:
    """Put a smaller complete model, made by its ``first_layers``, before ``model``, which takes over its modules.

    From now on layers 1..k are the companion's, with its classifiers; the model's own follow, and start from the
    tokens. Every exit gets a pooler of its own, where there are poolers, because the two models' differ.

    Raises UserError for another companion, and ValueError if the model has learned heads, token exits or a companion
    already.
    """
    if model.exit_heads or model.stepper.own_modules:
        raise ValueError("a companion must be added once, before any learned head, and without token exits")
    if companion.tokenizer is not model.tokenizer:
        raise UserError("a companion must be made of its model, by first_layers()")
    if {companion.description.classifier.kind, model.description.classifier.kind} != {"linear"}:
        raise UserError("a companion and its model must have linear classifiers")
    stepper = CascadeStepper(stepper_for(companion.backbone), stepper_for(model.backbone))
    companion.use_own_poolers()
    model.use_own_poolers()
    companion.to(model.device)
    model.classifiers = nn.ModuleList([*companion.classifiers, *model.classifiers])
    model.poolers = nn.ModuleList([*companion.poolers, *model.poolers])
    model.use_stepper(stepper)
    model.description.companion_name = companion.description.backbone_name
