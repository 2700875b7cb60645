"""Signals and ThresholdRule, on views made by hand."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from baselines.references import RandomRule
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ConsecutiveRule, NeverExit, OneLayerRule, StaticRule, ThresholdRule
from consistentee.rules.schedules import DepthThresholdRule, ScheduledRule
from consistentee.rules.view import predictions_of
from consistentee.rules.vocabulary import prune_vocabulary
from consistentee.signals import entropy, margin, normalised_entropy, top_probability
from consistentee.traces.instance_trace import Trace
from consistentee.traces.token_view import TokenView
from consistentee.traces.walk import walk


def view_of(logits, layer=1):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    rows = logits.shape[0]
    trace = Trace(logits.unsqueeze(1), torch.zeros(rows), {}, torch.ones(rows), torch.arange(rows))
    return trace.view(layer)


UNIFORM = [[0.0, 0.0, 0.0, 0.0]]
CERTAIN = [[60.0, 0.0, 0.0, 0.0]]


def test_signals_at_the_two_ends():
    assert entropy(view_of(UNIFORM)).item() == pytest.approx(math.log(4))
    assert normalised_entropy(view_of(UNIFORM)).item() == pytest.approx(1)
    assert top_probability(view_of(UNIFORM)).item() == pytest.approx(0.25)
    assert margin(view_of(UNIFORM)).item() == pytest.approx(0)
    assert entropy(view_of(CERTAIN)).item() == pytest.approx(0, abs=1e-6)
    assert margin(view_of(CERTAIN)).item() == pytest.approx(1)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6))
def test_signals_stay_in_range_and_are_finite(row):
    view = view_of([row])
    assert -1e-6 <= entropy(view).item() <= math.log(len(row)) + 1e-5
    assert 0 <= margin(view).item() <= top_probability(view).item() <= 1 + 1e-6


def test_threshold_is_strict_on_both_sides():
    view = view_of([[0.0, 0.0], [5.0, 0.0]])
    assert ThresholdRule(top_probability, 0.5, "above").should_exit(view, {}).tolist() == [False, True]
    assert ThresholdRule(margin, 0.5, "below").should_exit(view, {}).tolist() == [True, False]
    assert ThresholdRule(margin, 0.0, "below").should_exit(view, {}).tolist() == [False, False]


def test_a_regression_has_no_probabilities():
    with pytest.raises(UserError, match="regression"):
        entropy(view_of([[0.3]]))
    assert predictions_of(torch.tensor([[[0.25], [0.5]]])).tolist() == [[0.25, 0.5]]


def test_rules_about_another_rule_read_what_it_reads():
    class Earlier(NeverExit):
        reads_history = True

    for wrapped in (OneLayerRule(Earlier(), 2), ConsecutiveRule(Earlier(), 2), prune_vocabulary(Earlier(), 8)):
        assert wrapped.reads_history
    assert not OneLayerRule(NeverExit(), 2).reads_history


RULES_THAT_KNOW = {
    "never": NeverExit(),
    "static": StaticRule(3),
    "static between exits": StaticRule(2),
    "schedule": ScheduledRule([4, 3, 2, 1]),
    "random": RandomRule(2.4, seed=5, exit_layers=(1, 3, 4)),
    "random, every layer": RandomRule(3.0, seed=5),
}


@pytest.mark.parametrize("name", RULES_THAT_KNOW)
def test_exits_known_in_advance_are_those_of_a_rule_that_is_asked(tiny_decoder, name):
    rule, model = RULES_THAT_KNOW[name], tiny_decoder(exit_layers=(1, 3))
    prompts, steps = list(range(40, 80)), [place % 9 for place in range(40)]
    hidden = torch.zeros(40, 1, model.width)
    views = (TokenView(model, layer, hidden, steps, prompts) for layer in model.exit_layers)
    asked = torch.zeros(40, dtype=torch.long)
    for view, leaves in walk(rule, views):
        asked[leaves] = view.layer
    known = [rule.exit_in_advance(model.exit_layers, *token) for token in zip(steps, prompts, strict=True)]
    assert known == asked.tolist()


def test_a_subclass_that_decides_anew_is_asked():
    class Later(StaticRule):
        def should_exit(self, view, state):
            return super().should_exit(view, state) & (view.layer > 3)

    assert Later(2).exit_in_advance((1, 3), 1, 0) is None
    assert OneLayerRule(NeverExit(), 3).asked_at(3)
    assert not OneLayerRule(NeverExit(), 3).asked_at(1)
    assert [DepthThresholdRule({1: 1.0, 3: 0.5}).asked_at(layer) for layer in (1, 3)] == [False, True]
