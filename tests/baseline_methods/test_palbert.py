"""PALBERT: the prior, the exit distribution that training and rule share, and one classifier for all layers."""

import pytest
import torch
from conftest import make_task

from baselines.palbert import PALBERT, QuantileRule, divergence, geometric, leaving_probabilities
from consistentee.methods.reward import exit_distribution
from consistentee.traces.instance_trace import record_trace
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1)


def test_the_prior_is_geometric_and_the_last_layer_takes_the_rest():
    assert geometric(0.1, 4).tolist() == pytest.approx([0.1, 0.09, 0.081, 0.729])


def test_the_divergence_is_none_from_the_prior_itself_and_known_from_a_certain_exit():
    prior = geometric(0.1, 3)
    assert divergence(prior.repeat(5, 1), prior).item() == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(divergence(certain, prior), -torch.tensor(0.09).log())


def test_the_rule_leaves_by_the_distribution_that_training_has_shaped(tiny_model):
    task = make_task()
    model = PALBERT().fit(tiny_model(), task, RECIPE)
    trace = record_trace(model, task.test, max_length=32)
    with torch.no_grad():
        masses = exit_distribution(leaving_probabilities(model, trace.signals["pooled"]))
    torch.testing.assert_close(masses.sum(dim=1), torch.ones(len(trace)))
    rule = QuantileRule(0.5, model.width)
    state = rule.start(len(trace), model.num_layers)
    left = torch.stack([rule.score(trace.view(layer), state) for layer in (1, 2, 3)], dim=1)
    torch.testing.assert_close(left, masses.cumsum(dim=1)[:, :3])
