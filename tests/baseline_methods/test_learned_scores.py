"""Exit scores that are learned or kept (EENet, JEI-DNN, PALBERT, DE3-BERT, BEEM, BERxiT): formulas by hand."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional
from traces_by_hand import trace_of

from baselines.beem import BEEM, EXPERTS, ExpertsRule
from baselines.de3_bert import distance_ratio
from baselines.eenet import fit_thresholds
from baselines.jei_dnn import MassRule, certainty, exit_loss, exit_masses, gate_loss
from baselines.palbert import divergence, geometric
from benchmarks.testing.cases import RECIPE
from benchmarks.testing.tiny import make_task
from consistentee.methods.method import get_method
from consistentee.models.base import HeadSpec
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import replay, sweep

ROWS, LAYERS = 16, 5


def test_thresholds_let_the_share_of_rows_exit():
    scores = torch.rand(103, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.2, 0.0, 0.5, 0.3])
    thresholds = fit_thresholds(scores, shares)
    leaves = torch.cat([scores[:, :3] >= thresholds, torch.ones(103, 1, dtype=torch.bool)], dim=1)
    exits = leaves.int().argmax(dim=1) + 1
    assert [(exits == layer).sum().item() for layer in (1, 2, 3, 4)] == [20, 0, 51, 32]


def test_the_largest_scores_exit_first_and_equal_ones_together():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.8, 0.9], [0.1, 0.2]])
    assert fit_thresholds(scores, torch.tensor([0.5, 0.5])).item() == pytest.approx(0.8)
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.8], [0.5, 0.7], [0.1, 0.6], [0.1, 0.2]])
    scores = torch.cat([scores, torch.zeros(5, 1)], dim=1)
    assert fit_thresholds(scores, torch.tensor([0.2, 0.8, 0.0])).tolist() == pytest.approx([0.5, 0.2])


@given(st.integers(0, 2**31), st.floats(0.05, 1))
def test_exit_masses_sum_to_1(seed, scale):
    gates = torch.rand(ROWS, LAYERS - 1, generator=torch.Generator().manual_seed(seed)) * scale
    masses = exit_masses(gates)
    torch.testing.assert_close(masses.sum(dim=1), torch.ones(ROWS))
    for row in range(ROWS):
        for layer in range(LAYERS - 1):
            by_hand = max(0.0, min(gates[row, layer].item(), 1 - gates[row, :layer].sum().item()))
            assert masses[row, layer].item() == pytest.approx(by_hand, abs=1e-6)


def test_a_gate_reads_four_numbers_of_certainty():
    read = certainty(torch.tensor([[0.6, 0.3, 0.1]]))
    squared = [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]
    entropies = [-sum(p * math.log(p) for p in probs) for probs in ([0.6, 0.3, 0.1], squared)]
    torch.testing.assert_close(read, torch.tensor([[0.6, entropies[0], 0.3, entropies[1]]]))


def test_gates_learn_from_the_cheapest_exit_on():
    """At price 1.2 and three layers, a layer costs 0.4: the best exits are 2, 1 and 3."""
    losses = torch.tensor([[1.0, 0.5, 0.4], [0.3, 0.2, 0.1], [2.0, 2.0, 0.1]])
    gates = torch.tensor([[0.5, -1.0], [2.0, 0.1], [-0.3, 0.7]])
    weight = torch.tensor([2.0, 0.5])  # two negatives to one positive, one to two
    reached = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    signs = functional.logsigmoid(gates) * reached * weight + functional.logsigmoid(-gates) * (1 - reached)
    torch.testing.assert_close(gate_loss(gates, losses, 1.2), -signs.sum(dim=1).mean())


def test_exit_losses_are_weighted_by_mass_and_keep_their_sum():
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.1, 0.4]]).requires_grad_()
    masses = torch.tensor([[0.0, 0.75, 0.25], [1.0, 0.0, 0.0]])
    loss = exit_loss(losses, masses)
    assert loss.item() == pytest.approx((7.0 + 1.0) / 2)
    loss.backward()
    torch.testing.assert_close(losses.grad, masses * 8 / (2.5 + 0.5) / 2)
    assert exit_loss(torch.zeros(2, 3), masses).item() == 0, "no division by zero"


def test_jei_dnn_exits_where_half_of_the_remaining_mass_exits(tiny_model):
    model = tiny_model()
    gate = model.add_head("gate", HeadSpec(extra_inputs=4, reads_pooled=False))
    with torch.no_grad():
        for module, bias in zip(gate.modules_by_layer, (0.4, 0.4, 0.5, 0.5), strict=True):
            module.weight.zero_()
            module.bias.fill_(math.log(bias / (1 - bias)))
    trace = trace_of(torch.randn(2, 4, 3), model.width, gate=gate)
    rule = MassRule(0.5)
    state = rule.start(2, 4)
    shares = torch.stack([rule.score(trace.view(layer), state) for layer in (1, 2, 3)], dim=1)
    torch.testing.assert_close(shares, torch.tensor([[0.4, 0.4 / 0.6, 1.0]] * 2))
    assert [replay(MassRule(share), trace).tolist() for share in (0.3, 0.5, 0.9, 1.001)] == [
        [k] * 2 for k in (1, 2, 3, 4)
    ]


def test_the_prior_of_palbert_is_geometric_and_the_last_layer_takes_the_rest():
    assert geometric(0.1, 4).tolist() == pytest.approx([0.1, 0.09, 0.081, 0.729])


def test_the_divergence_is_zero_for_the_prior():
    prior = geometric(0.1, 3)
    assert divergence(prior.repeat(5, 1), prior).item() == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(divergence(certain, prior), -torch.tensor(0.09).log())


def test_the_distance_ratio_is_zero_at_a_prototype_and_half_between_two():
    nearest, second = torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0, 2.0, 0.0])
    assert distance_ratio(nearest, second).tolist() == [0, 0.125, 0.5, 0.5]


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 7.0])


def test_scores_of_beem_add_up_while_the_answer_stays_and_start_again_where_it_changes(tiny_model):
    model, rule = tiny_model(), ExpertsRule(1.0)
    model.add_factors(EXPERTS, WEIGHTS)
    changes_at_layer_3 = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.5, 0.3]]
    stays = [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    trace = trace_of(torch.tensor([changes_at_layer_3, stays]).log(), model.width, **{EXPERTS: model.head(EXPERTS)})
    state = rule.start(2, 4)
    scores = torch.stack([rule.score(trace.view(layer), state) for layer in (1, 2, 3)], dim=1)
    expected = [[0.5 * 0.8, 0.5 * 0.8 + 0.6, 2 * 0.7], [0.5 * 0.9, 0.5 * 0.9 + 0.9, 0.5 * 0.9 + 0.9 + 2.0]]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_the_knob_of_beem_is_a_share_of_the_largest_score(tiny_model):
    model = tiny_model()
    model.add_factors(EXPERTS, WEIGHTS)
    assert BEEM().rule(model, 0.5).threshold == pytest.approx((0.5 + 1.0 + 2.0) / 2)


def test_berxit_exits_by_confidence_too(tiny_model):
    model = get_method("berxit").fit(tiny_model(), make_task(), RECIPE)
    trace = record_trace(model, make_task().test, max_length=32)
    exits = sweep([get_method("berxit", exit_when="confident").rule(model, 0.6)], trace)[0]
    confident = trace.logits.softmax(dim=-1).amax(dim=-1)[:, :-1] > 0.4
    expected = torch.where(confident.any(dim=1), confident.int().argmax(dim=1) + 1, 4)
    assert exits.tolist() == expected.tolist()
