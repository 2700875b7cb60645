"""DE3-BERT: the ratio by hand, distances as the heads tell them, and what the regulariser does."""

import pytest
import torch
from conftest import make_task

from baselines.de3_bert import DE3BERT, distance_enhanced_entropy, distance_ratio
from consistentee.signals import normalised_entropy
from consistentee.traces.instance_trace import record_trace
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1)


def test_the_ratio_is_none_at_a_prototype_and_half_between_two():
    nearest, second = torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0, 2.0, 0.0])
    assert distance_ratio(nearest, second).tolist() == [0, 0.125, 0.5, 0.5]


@pytest.fixture(scope="module")
def task():
    return make_task()


def distances(model, trace, layer):
    """Distances from the prototypes, without the heads' way to say them: [rows, classes]."""
    place = model.head("metric")(layer, trace.signals["pooled"][:, layer - 1])
    prototypes = model.head("prototypes").modules_by_layer[layer - 1].weight
    return (place.unsqueeze(1) - prototypes).norm(dim=-1)


@torch.no_grad()
def test_the_rule_compares_distances_from_prototypes(tiny_model, task):
    with torch.enable_grad():
        model = DE3BERT().fit(tiny_model(), task, RECIPE)
    trace = record_trace(model, task.test, max_length=32)
    for layer in range(1, model.num_layers):
        nearest, second = distances(model, trace, layer).sort(dim=-1).values[:, :2].unbind(dim=-1)
        view = trace.view(layer)
        expected = 2 / (1 / (0.5 * nearest / second) + 1 / normalised_entropy(view))
        torch.testing.assert_close(distance_enhanced_entropy(view), expected, rtol=1e-3, atol=1e-4)
