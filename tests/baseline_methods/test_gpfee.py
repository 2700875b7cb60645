"""GPFEE: what the imitation loss asks for, and that training meets it."""

import torch

from baselines.gpfee import imitation_loss
from consistentee.models.classifiers import ClassifierSpec
from consistentee.models.encoder.multi_exit_model import MultiExitModel


def with_past_future(model: MultiExitModel) -> MultiExitModel:
    model.use_classifier(ClassifierSpec("past-future", width=16))
    return model


def test_imitation_is_one_minus_the_cosine_over_all_pairs(tiny_model):
    model = with_past_future(tiny_model())
    pooled = torch.randn(5, model.num_layers, model.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in range(1, model.num_layers):
            for parameter in model.classifier(t).predictor.parameters():
                parameter.zero_()  # every later state is predicted to be the current one
    cosine = torch.nn.functional.cosine_similarity(pooled[:, :, None], pooled[:, None], dim=-1)
    pairs = [1 - cosine[:, t, later] for t in range(4) for later in range(t + 1, 4)]
    torch.testing.assert_close(imitation_loss(model, pooled), torch.stack(pairs).mean())


def test_real_states_do_not_come_to_meet_the_predictions(tiny_model):
    model = with_past_future(tiny_model())
    pooled = torch.randn(5, model.num_layers, model.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    imitation_loss(model, pooled).backward()
    moved = pooled.grad.abs().sum(dim=(0, 2))
    assert moved[-1] == 0
    assert (moved[:-1] > 0).all()
