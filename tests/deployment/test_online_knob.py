"""Knobs learned on a stream: the bandit by hand and on arms of known reward, and streams of a trained method."""

import numpy as np
import pytest
import torch
from conftest import make_task

from consistentee.deployment.online_knob import learn_knob, upper_confidence_arms
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.traces.instance_trace import record_trace


def test_each_arm_is_played_once_and_then_the_largest_bound_by_hand():
    rewards = np.array([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.5, 0.5]])
    # After one play each: 1 + 2 sqrt(ln 2) against 0.5 + 2 sqrt(ln 2): arm 0, which earns 1.
    # At time 3: 1 + 2 sqrt(ln 3 / 2) = 2.48 against 0.5 + 2 sqrt(ln 3) = 2.60: arm 1, which earns 0.5.
    # At time 4: 1 + 2 sqrt(ln 4 / 2) = 2.67 against 0.5 + 2 sqrt(ln 4 / 2) = 2.17: arm 0.
    assert upper_confidence_arms(rewards, exploration=2.0).tolist() == [0, 1, 0, 1, 0]


def test_the_best_arm_is_found_among_arms_of_known_reward():
    means = np.array([0.2, 0.5, 0.8, 0.4])
    rewards = (np.random.default_rng(0).random((4, 4000)) < means[:, None]).astype(float)
    played = upper_confidence_arms(rewards, exploration=0.5)
    assert (played[-1000:] == 2).mean() > 0.9


@pytest.fixture
def traced(tiny_model):
    """Return a method, a tiny model with random exits, and its trace on 200 rows."""
    model = tiny_model("bert")
    return get_method("deebert"), model, record_trace(model, make_task().train)


def test_a_high_price_learns_to_exit_at_once_and_none_to_go_on(traced):
    method, model, trace = traced
    arms = [0.0, 1.09]  # entropies: never, at once
    dear = learn_knob(method, model, trace, price=1.0, knobs=arms, exploration=0.1)
    assert dear.exits[2:].tolist() == [1] * (len(trace) - 2)
    assert set(dear.exits[dear.played == 0]) == {trace.num_layers}
    assert dear.regret[-1] == pytest.approx(dear.regret[0])


def test_answers_are_those_of_the_exits_and_labels_are_not_read(traced):
    method, model, trace = traced
    found = learn_knob(method, model, trace, price=0.1, knobs=[0.1, 0.3, 0.6])
    assert found.answers.tolist() == trace.predictions(torch.as_tensor(found.exits)).tolist()
    trace.labels = 1 - trace.labels
    assert learn_knob(method, model, trace, price=0.1, knobs=[0.1, 0.3, 0.6]).played.tolist() == found.played.tolist()


def test_too_few_rows_are_refused(traced):
    method, model, trace = traced
    with pytest.raises(UserError, match="fewer knobs"):
        learn_knob(method, model, trace, price=0.1, knobs=[0.1] * (len(trace) + 1))
