"""ConsistentEE's ladder of prices in one model."""

import pytest
import torch
from conftest import make_task

from consistentee.methods.consistent_ee.ladder import ConsistentEELadder
from consistentee.methods.consistent_ee.price_ladder import rung_logits
from consistentee.methods.policy import POLICY
from consistentee.traces.instance_trace import record_outputs, record_trace
from consistentee.traces.walk import sweep

LADDER = ConsistentEELadder(rungs=3, lowest_price=0.01, highest_price=1.0)


@pytest.fixture
def model(tiny_model):
    model = tiny_model()
    head = model.add_head(POLICY, LADDER.policy_spec())
    generator = torch.Generator().manual_seed(2)
    head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})
    return model


def test_prices_are_evenly_spaced_by_their_logarithm(model):
    assert LADDER.ladder.prices == pytest.approx((0.01, 0.1, 1.0))
    assert LADDER.knob_values(model) == pytest.approx((1e6, 1.0, 0.1, 0.01, 0.0))


def test_a_higher_price_never_lowers_the_exit_probability():
    output = torch.randn(50, 6, 3, generator=torch.Generator().manual_seed(0)) * 5
    logits = rung_logits(output)
    assert logits.shape == output.shape
    assert torch.equal(logits[..., 0], output[..., 0])
    assert (logits.diff(dim=-1) > 0).all()


def test_the_rule_of_a_price_follows_the_policy_that_learns_under_it(model):
    """Training computes P(exit) of all prices and layers at once, the rule one price, layer by layer."""
    task = make_task()
    outputs = record_outputs(model, model.tokenize(task.test.texts))
    with torch.no_grad():
        policies = LADDER.policies(model, outputs)
    exits = sweep([LADDER.rule(model, price) for price in LADDER.ladder.prices], record_trace(model, task.test))
    assert [alpha[0].item() for alpha, _ in policies] == pytest.approx(list(LADDER.ladder.prices))
    for (_, probabilities), left in zip(policies, exits, strict=True):
        wants_out = torch.cat([probabilities[:, :-1] > 0.5, torch.ones(len(probabilities), 1).bool()], dim=1)
        assert torch.equal(wants_out.int().argmax(dim=1) + 1, left)
    assert exits.unique().numel() > 1


@pytest.mark.parametrize(("price", "rung"), [(0.012, 0), (0.2, 1), (0.5, 2), (20.0, 2)])
def test_a_price_between_two_rungs_is_served_by_the_nearer_one(model, price, rung):
    assert LADDER.rule(model, price).rungs == (rung,)
