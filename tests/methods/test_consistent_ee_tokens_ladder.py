"""ConsistentEE's ladder of prices on tokens."""

from dataclasses import replace

import pytest
import torch
from conftest import make_text_task

from consistentee.engine.generate import generate_encoded
from consistentee.methods.consistent_ee.price_ladder import ALWAYS
from consistentee.methods.consistent_ee.tokens_ladder import ConsistentEETokensLadder
from consistentee.methods.policy import POLICY
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import sweep
from consistentee.training.sources import DrawnTokens
from consistentee.training.recipe import TokenRecipe

LADDER = ConsistentEETokensLadder(rungs=3, lowest_price=0.01, highest_price=1.0)
ROWS = [([2, 7, 9], [30, 31, *range(20, 60)]), ([2, 8], [40, *range(30, 50)])]


def test_the_rule_of_a_price_follows_the_policy_that_learns_under_it(tiny_decoder):
    """Training computes P(exit) of all prices and exits at once, the rule one price, exit by exit."""
    model, _ = ladder_with_random_policies(tiny_decoder)
    trace = record_tokens(model, ROWS)
    source = DrawnTokens(trace, torch.arange(len(trace)), len(trace), seed=0)
    with torch.no_grad():
        policies = LADDER.policies(model, source.batch(source.tokens.argsort(), 0), None)
    exits = sweep([LADDER.rule(model, price) for price in LADDER.ladder.prices], trace)
    assert [alpha[0].item() for alpha, _ in policies] == pytest.approx([0.01, 0.1, 1.0])
    for (_, probabilities), left in zip(policies, exits, strict=True):
        wants_out = torch.cat([probabilities[:, :-1] > 0.5, torch.ones(len(trace), 1).bool()], dim=1)
        expected = torch.tensor([1, 3, 4])[wants_out.int().argmax(dim=1)]
        assert torch.equal(left[trace.may_exit], expected[trace.may_exit])
    assert exits[:, trace.may_exit].unique().numel() > 1


def ladder_with_random_policies(tiny_decoder, **parameters):
    model = tiny_decoder(exit_layers=(1, 3))
    method = replace(LADDER, **parameters)
    head = model.add_head(POLICY, method.policy_spec())
    generator = torch.Generator().manual_seed(2)
    head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})
    return model, method


def test_a_rising_price_is_that_of_its_step_and_stays_on_the_ladder(tiny_decoder):
    model, even = ladder_with_random_policies(tiny_decoder)
    rising = replace(even, price_rise=100.0, horizon=5)
    trace = record_tokens(model, ROWS)
    at_prices = sweep([even.rule(model, price) for price in (0.01, 0.1, 1.0)], trace)
    steps = trace.step.clamp_max(4)
    for knob, rungs in {0.01: (0, 0, 0, 1, 1), 0.1: (0, 1, 1, 1, 2), 1.0: (1, 1, 2, 2, 2)}.items():
        wanted = at_prices.gather(0, torch.tensor(rungs)[steps].unsqueeze(0))[0]
        assert torch.equal(sweep([rising.rule(model, knob)], trace)[0], wanted)
    assert not torch.equal(at_prices[0], at_prices[2]), "prices that nothing tells apart show nothing"
    assert not torch.equal(sweep([rising.rule(model, 0.1)], trace)[0], at_prices[1])
    for never_or_always in (0.0, ALWAYS):
        rules = [method.rule(model, never_or_always) for method in (even, rising)]
        assert torch.equal(*sweep(rules, trace))


def test_a_price_that_rises_decodes_alike_at_every_batch_and_in_flight(tiny_decoder):
    model, method = ladder_with_random_policies(tiny_decoder, price_rise=100.0, horizon=6)
    prompts = [[2, 7, 9], [2, 8], [2, 5, 6, 11], [2, 30]]
    rule = method.rule(model, 0.1)
    alone, together, in_flight = (
        generate_encoded(model, prompts, rule, max_new_tokens=8, **options)
        for options in ({"batch_size": 1}, {"batch_size": 4}, {"batch_size": 2, "in_flight": 3})
    )
    for found in (together, in_flight):
        assert [tokens.tolist() for tokens in found.tokens] == [tokens.tolist() for tokens in alone.tokens]
        assert [exits.tolist() for exits in found.exit_layers] == [exits.tolist() for exits in alone.exit_layers]
    assert torch.cat(list(alone.exit_layers)).unique().numel() > 1


def test_higher_prices_give_earlier_exits(tiny_decoder):
    recipe = TokenRecipe(exit_steps=4, exit_batch_size=16, head_steps=60, head_batch_size=32, head_learning_rate=3e-2)
    method = ConsistentEETokensLadder(highest_price=5.0, reward="vanilla", consistent_steps=2)
    model = method.fit(tiny_decoder(), make_text_task(), recipe)
    trace = record_tokens(model, ROWS)
    exits = sweep([method.rule(model, price) for price in method.knob_values(model)], trace)[:, trace.may_exit]
    assert (exits[1:] >= exits[:-1]).all(), "a lower price never exits earlier"
    assert (exits[0] == 1).all()
    assert (exits[-1] == 4).all()
    assert exits.double().mean(dim=1).unique().numel() > 3
