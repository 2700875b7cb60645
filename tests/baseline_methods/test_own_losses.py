"""Losses of a method's own (COSEE, LeeBERT, SWEET): terms, weights, poolers and gradients by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from traces_by_hand import trace_of

from baselines.cosee import COSEE, exit_weights, normalised_energy, ranking_loss, simulated_exits
from baselines.leebert import LeeBERT, alignment, lesson_weights, lessons
from baselines.sweet import exit_layers, separate_loss
from benchmarks.testing.tiny import make_task
from consistentee.methods.method import get_method
from consistentee.traces.walk import replay
from consistentee.training.encoder import BACKBONE_AND_CLASSIFIERS, hold_out, layer_losses, training_source
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32)
METHOD = LeeBERT(held_out=0.3, weight_every=2)


def test_simulated_exits_of_cosee_are_the_exits_of_its_rule_on_the_energy():
    energy, method = normalised_energy(torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])), COSEE()
    torch.testing.assert_close(energy, torch.tensor([1 / 4, 1 / (1 + 2 + math.exp(10))]))
    logits = torch.randn(64, 6, 3, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    trace = trace_of(logits)
    simulated = simulated_exits(normalised_energy(trace.logits), torch.tensor(method.knob.values))
    assert simulated.unique().tolist() == [1, 2, 3, 4, 5, 6]
    replayed = [replay(method.rule(SimpleNamespace(description=None), knob), trace) for knob in method.knob.values]
    assert torch.equal(simulated, torch.stack(replayed))


def test_weights_of_cosee_by_hand():
    weights = exit_weights(torch.tensor([[1], [3]]), num_layers=3, sharpness=math.log(2))
    expected = (torch.tensor([[4.0, 2.0, 1.0]]) + torch.tensor([[1.0, 2.0, 4.0]])) / 7 / 2
    torch.testing.assert_close(weights, expected)


def test_ranking_by_hand():
    signals = torch.tensor([[0.1, 0.5, 0.0], [0.3, 0.5, 0.0], [0.6, 0.5, 9.0]])
    correct = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    # Layer 1: 0.2 - 0.6 + 0.5; layer 2 has no hard row; layer 3 is the last.
    assert ranking_loss(signals, correct, margin=0.5).item() == pytest.approx(0.1 / 2)
    assert ranking_loss(signals, correct, margin=0.3).item() == 0


def test_lessons_by_hand():
    probs = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    logits = probs.log().unsqueeze(0)
    terms = lessons(logits, logits, torch.tensor([0]))
    first_from_second = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    second_from_first = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    expected = [[-math.log(0.8), first_from_second], [second_from_first, -math.log(0.5)]]
    torch.testing.assert_close(terms, torch.tensor(expected))


def test_weights_of_lessons_are_positive_with_fixed_sums():
    weights = lesson_weights(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 10)
    assert (weights >= 0).all()
    assert weights.diagonal().sum().item() == pytest.approx(5, rel=1e-5)
    assert weights.sum().item() == pytest.approx(10, rel=1e-5)
    torch.testing.assert_close(lesson_weights(torch.zeros(5, 5)), torch.full((5, 5), 1 / 4).fill_diagonal_(1))


def test_alignment_equals_the_inner_products_of_gradients(tiny_model):
    model = tiny_model()
    trained_on, held_out_rows = hold_out(training_source(model, make_task(), RECIPE), METHOD.held_out)
    batch, held_out = trained_on.batch(torch.arange(16), 0), held_out_rows.batch(torch.arange(12), 0)
    parameters = [p for name, p in model.named_parameters() if name.startswith(BACKBONE_AND_CLASSIFIERS)]

    def gradient(loss):
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    outer = gradient(layer_losses(model(held_out.tokens).logits, held_out.labels).mean())
    exact = torch.empty(model.num_layers, model.num_layers)
    for pupil, teacher in torch.cartesian_prod(*[torch.arange(model.num_layers)] * 2).tolist():
        logits = model(batch.tokens).logits
        term = lessons(logits, logits.detach(), batch.labels)[pupil, teacher]
        exact[pupil, teacher] = gradient(term) @ outer / outer.norm()
    assert (exact > 0).any()
    assert (exact < 0).any()
    torch.testing.assert_close(alignment(model, batch, held_out), exact, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", ["deebert", "berxit", "sweet", "ztw"])
def test_exits_that_learn_by_themselves_have_their_own_poolers(tiny_model, name):
    model = tiny_model(pooling="cls", pooler="shared")
    get_method(name).fit(model, make_task(rows=8), replace(RECIPE, epochs=1, frozen_steps=1))
    assert model.description.pooler == "per_exit"


def test_an_exit_of_sweet_trains_only_the_layers_since_the_one_before(tiny_model):
    model = tiny_model()
    assert exit_layers(model) == (1, 2, 4)
    batch = training_source(model, make_task(), RECIPE).batch(torch.arange(8), 0)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        separate_loss(exit_layers(model), model, batch).backward()
        weights = [model.stepper.layer_module(layer).parameters() for layer in range(1, 5)]
        return [torch.cat([w.grad.flatten() for w in of_layer if w.grad is not None]) for of_layer in weights]

    before = gradients()
    assert all(gradient.any() for gradient in before)
    for classifier in (model.classifiers[1], model.classifiers[3]):  # without these exits nothing reaches 2 to 4
        torch.nn.init.zeros_(classifier.weight)
    after = gradients()
    assert [bool(gradient.any()) for gradient in after] == [True, False, False, False]
    assert torch.equal(after[0], before[0])
