"""ZTW: heads and ensembles against a plain loop, what each stage changes, and models that are copied and saved."""

import pytest
import torch
from conftest import make_task
from torch.nn import functional

from baselines.ztw import ZTW
from consistentee.models.classifiers import ClassifierSpec, RecordedLayer
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.training.encoder import train_last_exit
from consistentee.training.recipe import Recipe

RECIPE = Recipe(
    epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1, frozen_steps=30
)
ENSEMBLES = ClassifierSpec("ensemble", at_last_layer=False)


@pytest.fixture
def model(tiny_model) -> MultiExitModel:
    """Ensembles whose weights are far from those that they start with."""
    model = tiny_model()
    model.use_classifier(ENSEMBLES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("classifiers."):
                weight.normal_(generator=generator)
    return model


def by_hand(model: MultiExitModel, pooled: torch.Tensor) -> list[torch.Tensor]:
    """Return the distributions of the ensembles of one row [L, width], layer by layer."""
    said, ensembles, before = [], [], None
    for layer in range(1, model.num_layers):
        weights = model.classifier(layer).state_dict()
        inputs = pooled[layer - 1]
        if before is not None:
            spread = (before - before.mean()) / (before.var(correction=0) + 1e-5).sqrt()
            inputs = torch.cat([inputs, spread])
        before = weights["output.weight"] @ inputs + weights["output.bias"]
        said.append(before.softmax(dim=0))
        total = sum(weights["exponents"][j].exp() * said[j].log() for j in range(layer))
        ensembles.append(functional.softmax(total / layer + weights["bias"], dim=0))
    return ensembles


@torch.no_grad()
def test_answers_are_those_of_a_plain_loop(model):
    pooled = torch.randn(5, model.num_layers, model.width, generator=torch.Generator().manual_seed(1))
    for layer in range(1, model.num_layers):
        answer = model.classify(layer, RecordedLayer(pooled[:, :layer])).softmax(dim=-1)
        expected = torch.stack([by_hand(model, row)[layer - 1] for row in pooled])
        torch.testing.assert_close(answer, expected)


def test_no_gradient_reaches_the_head_before_through_its_logits(model):
    pooled = torch.randn(5, 2, model.width, generator=torch.Generator().manual_seed(1))
    model.classifier(2).head_logits(pooled)[:, 1].sum().backward()
    assert model.classifier(1).output.weight.grad.abs().sum() == 0
    assert model.classifier(2).output.weight.grad.abs().sum() > 0


def test_training_leaves_the_fine_tuned_model_as_it_is(tiny_model):
    task, stock = make_task(), tiny_model()
    train_last_exit(stock, task, RECIPE)
    model = ZTW().fit(tiny_model(), task, RECIPE)
    last = f"classifiers.{model.num_layers - 1}."
    kept = [name for name in stock.state_dict() if name.startswith(("backbone.", last))]
    assert all(torch.equal(model.state_dict()[name], stock.state_dict()[name]) for name in kept)
    assert model.classifier(3).exponents.abs().max() > 0.05, "it starts from N(0, 0.01)"
