"""The recorded signal of a rule: what it compares with its threshold, layer by layer."""

import numpy as np
import pytest
import torch

from benchmarks.kinds.instance_evaluation import signal_quantiles
from benchmarks.store.records import SIGNAL_QUANTILES
from consistentee.methods.policy import POLICY, PolicyRule, policy_spec
from consistentee.rules.exit_rule import NeverExit, ThresholdRule
from consistentee.signals import top_probability
from consistentee.traces.instance_trace import Trace, record_trace

ROWS, LAYERS = 50, 4


@pytest.fixture
def trace():
    torch.manual_seed(0)
    logits = torch.randn(ROWS, LAYERS, 3)
    return Trace(logits, torch.zeros(ROWS), {}, torch.ones(ROWS), torch.arange(ROWS))


def test_quantiles_of_a_threshold_rule(trace):
    found = np.asarray(signal_quantiles(ThresholdRule(top_probability, 0.5, "above"), trace))
    expected = trace.logits.double().softmax(-1).amax(-1)[:, :-1].numpy()
    assert pytest.approx(np.quantile(expected, SIGNAL_QUANTILES, axis=0), abs=1e-6) == found.T


def test_a_rule_without_a_threshold_has_none(trace):
    assert signal_quantiles(NeverExit(), trace) == []


def test_a_policy_is_compared_by_its_exit_probability(tiny_model, toy_task):
    model = tiny_model("bert", num_labels=toy_task.num_labels)
    model.add_head(POLICY, policy_spec("state+confidence", outputs=2))
    trace = record_trace(model.eval(), toy_task.test)
    cheap, dear = (np.asarray(signal_quantiles(PolicyRule("state+confidence", 0.5, a), trace)) for a in (0.01, 10.0))
    assert cheap.shape == (trace.num_layers - 1, len(SIGNAL_QUANTILES))
    assert (cheap >= 0).all()
    assert (cheap <= dear).all()
    assert (dear <= 1).all()
