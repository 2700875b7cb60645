"""JEI-DNN: masses, the targets of the gates, the scale of the exits' losses, and the rule by hand."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional

from baselines.jei_dnn import MassRule, certainty, exit_loss, exit_masses, gate_loss
from consistentee.models.heads import HeadSpec
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import replay

ROWS, LAYERS = 16, 5


@given(st.integers(0, 2**31), st.floats(0.05, 1))
def test_masses_are_what_is_left_of_a_row_and_sum_to_1(seed, scale):
    gates = torch.rand(ROWS, LAYERS - 1, generator=torch.Generator().manual_seed(seed)) * scale
    masses = exit_masses(gates)
    torch.testing.assert_close(masses.sum(dim=1), torch.ones(ROWS))
    for row in range(ROWS):
        for layer in range(LAYERS - 1):
            by_hand = max(0.0, min(gates[row, layer].item(), 1 - gates[row, :layer].sum().item()))
            assert masses[row, layer].item() == pytest.approx(by_hand, abs=1e-6)


def test_what_a_gate_reads():
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


def test_exits_learn_where_rows_leave_and_the_scale_is_one_and_has_no_gradient():
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.1, 0.4]]).requires_grad_()
    masses = torch.tensor([[0.0, 0.75, 0.25], [1.0, 0.0, 0.0]])
    loss = exit_loss(losses, masses)
    assert loss.item() == pytest.approx((7.0 + 1.0) / 2)
    loss.backward()
    torch.testing.assert_close(losses.grad, masses * 8 / (2.5 + 0.5) / 2)
    assert exit_loss(torch.zeros(2, 3), masses).item() == 0, "no division by zero"


def test_rows_leave_where_half_of_the_mass_still_there_leaves(tiny_model):
    model = tiny_model()
    gate = model.add_head("gate", HeadSpec(extra_inputs=4, reads_pooled=False))
    with torch.no_grad():
        for module, bias in zip(gate.modules_by_layer, (0.4, 0.4, 0.5, 0.5), strict=True):
            module.weight.zero_()
            module.bias.fill_(math.log(bias / (1 - bias)))
    lengths, pooled = torch.ones(2, dtype=torch.long), torch.zeros(2, 4, model.width)
    trace = Trace(torch.randn(2, 4, 3), lengths, {"pooled": pooled}, lengths, lengths, {"gate": gate})
    rule = MassRule(0.5)
    state = rule.start(2, 4)
    shares = torch.stack([rule.score(trace.view(layer), state) for layer in (1, 2, 3)], dim=1)
    torch.testing.assert_close(shares, torch.tensor([[0.4, 0.4 / 0.6, 1.0]] * 2))
    assert [replay(MassRule(share), trace).tolist() for share in (0.3, 0.5, 0.9, 1.001)] == [
        [k] * 2 for k in (1, 2, 3, 4)
    ]
