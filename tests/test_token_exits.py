"""Token-level exits: live tokens alone are run, and it equals the stock layer on all tokens with exited ones put back."""

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, make_task, random_texts
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistentee.backbones.encoders import stepper_for
from consistentee.backbones.token_exits import layers_run
from consistentee.classification import classify, classify_encoded, stock_encoded
from consistentee.encoding import Batch, Encoding
from consistentee.errors import UserError
from consistentee.exits import NeverExit, ThresholdRule, entropy
from consistentee.model import MultiExitModel
from consistentee.trace import Trace, record_trace, replay

LAYERS = 4


def mixed_schedule(last: int = LAYERS) -> Tensor:
    """Exit layers 1..last, mixed over the vocabulary."""
    return torch.randint(1, last + 1, (len(VOCABULARY),), generator=torch.Generator().manual_seed(5))


def full_depth() -> Tensor:
    return torch.full((len(VOCABULARY),), LAYERS)


def stock_layers_with_exited_tokens_put_back(model: MultiExitModel, batch: Batch) -> list[Tensor]:
    """Hidden states of all layers, each layer run by the stock module on all tokens."""
    stepper = stepper_for(model.backbone)
    exits = model.token_exits.schedule[batch.input_ids].unsqueeze(-1)
    hidden, context = stepper.begin(batch)
    states = []
    for layer in range(1, model.num_layers + 1):
        hidden = torch.where(exits >= layer, stepper.step(layer, hidden, context), hidden)
        states.append(hidden)
    return states


def stepped(model: MultiExitModel, batch: Batch) -> list[Tensor]:
    hidden, context = model.stepper.begin(batch)
    states = []
    for layer in range(1, model.num_layers + 1):
        hidden = model.stepper.step(layer, hidden, context)
        states.append(hidden)
    return states


def batch_of(model: MultiExitModel, count: int = 9) -> Batch:
    return model.collate(model.tokenize(random_texts(count, seed=4)))


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("last", [2, LAYERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_the_stock_layer_with_exited_tokens_put_back(tiny_model, family, last, count):
    model = tiny_model(family)
    model.use_token_exits(mixed_schedule(last))
    batch = batch_of(model, count)
    real = batch.padding_mask.unsqueeze(-1)
    with torch.no_grad():
        for ours, expected in zip(
            stepped(model, batch), stock_layers_with_exited_tokens_put_back(model, batch), strict=True
        ):
            torch.testing.assert_close(ours * real, expected * real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_stock_layers(tiny_model, family):
    model = tiny_model(family)
    model.use_token_exits(mixed_schedule())
    batch = batch_of(model)
    real = batch.padding_mask.unsqueeze(-1)
    gradients = []
    for states in (stepped(model, batch), stock_layers_with_exited_tokens_put_back(model, batch)):
        model.zero_grad(set_to_none=True)
        (states[-1] * real).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-3, atol=1e-4, msg=name)
