"""COSEE: simulated exits, weights, ranking, and the stage made of them."""

from functools import partial

import pytest
import torch
from conftest import make_task

from baselines.cosee import COSEE, consistency_oriented_loss, exit_weights, normalised_energy, ranking_loss
from consistentee.methods.reward import simulated_exits
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import replay
from consistentee.training.encoder import layer_losses, training_source
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32)


def test_energy_by_hand():
    energy = normalised_energy(torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]]))
    torch.testing.assert_close(energy, torch.tensor([1 / 4, 1 / (1 + 2 + torch.tensor(10.0).exp().item())]))


def test_simulated_exits_are_the_exits_of_the_rule():
    method = COSEE()
    logits = torch.randn(64, 6, 3, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    trace = Trace(logits, torch.zeros(64), {}, torch.ones(64), torch.arange(64))
    simulated = simulated_exits(normalised_energy(trace.logits), torch.tensor(method.knob.values))
    assert simulated.unique().tolist() == [1, 2, 3, 4, 5, 6]
    replayed = [replay(method.rule(None, knob), trace) for knob in method.knob.values]
    assert torch.equal(simulated, torch.stack(replayed))


def test_weights_by_hand():
    weights = exit_weights(torch.tensor([[1], [3]]), num_layers=3, sharpness=torch.log(torch.tensor(2.0)).item())
    expected = (torch.tensor([[4.0, 2.0, 1.0]]) + torch.tensor([[1.0, 2.0, 4.0]])) / 7 / 2
    torch.testing.assert_close(weights, expected)


def test_ranking_by_hand():
    signals = torch.tensor([[0.1, 0.5, 0.0], [0.3, 0.5, 0.0], [0.6, 0.5, 9.0]])
    correct = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    # Layer 1: 0.2 - 0.6 + 0.5; layer 2 has no hard row; layer 3 is the last.
    assert ranking_loss(signals, correct, margin=0.5).item() == pytest.approx(0.1 / 2)
    assert ranking_loss(signals, correct, margin=0.3).item() == 0


def test_loss_starts_as_the_mean_over_layers(tiny_model):
    """Before any warm-up the exits must not matter: the loss is the plain mean of all cross-entropies."""
    model = tiny_model()
    source = training_source(model, make_task(), RECIPE)
    batch = source.batch(torch.arange(16), step=0)
    loss = partial(consistency_oriented_loss, COSEE(ranking=0.0), 10)
    torch.testing.assert_close(loss(model, batch), layer_losses(model(batch.tokens).logits, batch.labels).mean())
    late = source.batch(torch.arange(16), step=9)
    assert not torch.isclose(loss(model, late), loss(model, batch))
