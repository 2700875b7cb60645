"""CALM on tokens: the falling threshold and the confidences by hand, and the learned confidence."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import make_text_task, random_prompts
from torch.nn import functional

from baselines.calm import CALMTokensClassifier, DecayingThresholdRule, agreement
from consistentee.methods.method import get_method
from consistentee.signals import margin
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import replay
from consistentee.training.decoder import training_rows
from consistentee.training.recipe import TokenRecipe
from consistentee.training.token_answers import exit_answers

RECIPE = TokenRecipe(exit_steps=5, exit_batch_size=16, head_steps=5, head_batch_size=32)
NAMES = ["calm-tokens-classifier", "calm-tokens-softmax", "calm-tokens-state"]


@pytest.mark.parametrize(
    ("threshold", "tau", "step", "expected"),
    [
        (0.5, 4.0, 0, 0.55),
        (0.5, 4.0, 10, 0.45 + 0.1 * math.exp(-1)),
        (0.5, 0.0, 40, 0.55),
        (1.0, 4.0, 0, 1.0),
        (-0.2, 4.0, 0, 0.0),
        (1.2, 4.0, 1000, 1.0),
    ],
)
def test_threshold_by_hand(threshold, tau, step, expected):
    rule = DecayingThresholdRule(margin, threshold, tau, tokens=40, width=1)
    assert rule.threshold_at(step) == pytest.approx(expected)


def trace_of(model, count=6):
    rows = [(prompt, [7, 9, 11, 30, 3]) for prompt in model.encode(random_prompts(count, seed=4))]
    return record_tokens(model, rows)


def test_state_saturation_by_hand(tiny_decoder):
    """A token leaves at the first exit, from the second on, whose state has a cosine of 0.6 with the one before."""
    model = tiny_decoder()
    trace = trace_of(model)
    states = model.state(trace.speaking)
    cosines = functional.cosine_similarity(states[:, 1:], states[:, :-1], dim=-1)[:, :2]
    expected = [next((i + 2 for i, cosine in enumerate(row) if cosine >= 0.6), 4) for row in cosines.tolist()]
    expected = torch.where(trace.step == 0, 4, torch.tensor(expected))
    exits = replay(DecayingThresholdRule(None, (0.6 - 0.1) / 0.9, 0.0, 40, model.width), trace)
    assert exits.tolist() == expected.tolist()
    assert len(set(exits.tolist())) > 1


def test_threshold_is_stretched_over_what_the_model_was_trained_to_write(tiny_decoder):
    model = tiny_decoder()
    assert get_method(NAMES[1]).rule(model, 0.5).tokens == 64
    get_method(NAMES[1]).fit(model, make_text_task(), RECIPE)
    assert get_method(NAMES[1]).rule(model, 0.5).tokens == make_text_task().max_new_tokens
    assert get_method(NAMES[1], horizon=20).rule(model, 0.5).tokens == 20


def test_agreement_by_hand():
    named = torch.tensor([[5, 7, 7], [7, 5, 7], [1, 2, 3]])
    assert agreement(named).tolist() == [[0, 1], [1, 0], [0, 0]]


def test_confidence_learns_who_will_agree_and_changes_nothing_else(tiny_decoder):
    model, task = tiny_decoder(), make_text_task(60)
    recipe = replace(RECIPE, head_steps=100, head_learning_rate=3e-2)
    shared = get_method("calm-tokens-softmax").fit(tiny_decoder(), task, recipe).state_dict()
    CALMTokensClassifier().fit(model, task, recipe)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in shared.items())
    assert {name.split(".")[0] for name in weights.keys() - shared.keys()} == {"exit_heads"}
    trace = record_tokens(model, training_rows(model, task, RECIPE))
    trace = trace.select(trace.may_exit)
    agrees = agreement(exit_answers(trace).predictions)
    states = model.state(trace.speaking)
    guess = torch.stack([model.head("confidence")(i + 1, states[:, i]) for i in range(3)], dim=1)
    rate = agrees.mean()
    chance = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
    assert functional.binary_cross_entropy_with_logits(guess, agrees) < chance
    assert guess[agrees == 1].mean() > guess[agrees == 0].mean() + 0.3
