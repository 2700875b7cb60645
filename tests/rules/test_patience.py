"""Rules that wait for consecutive layers (PABEE, PCEE-BERT, F-PABEE), on traces of random logits."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from baselines.f_pabee import jensen_shannon
from baselines.pcee_bert import PCEEBERT
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.methods.token_methods import TokenMethod
from consistentee.rules.exit_rule import ConsecutiveRule, SameAnswerRule
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import replay

LAYERS, CLASSES = 8, 3


def trace_of(logits):
    rows = logits.shape[0]
    return Trace(logits, torch.zeros(rows), {}, torch.ones(rows), torch.arange(rows))


@st.composite
def traces(draw):
    """Return 64 rows whose answers change now and then: a random walk of the logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    steps = torch.randn(64, LAYERS, CLASSES, generator=generator) * draw(st.floats(0.1, 3))
    return trace_of(steps.cumsum(dim=1))


PATIENCE = st.integers(1, LAYERS)
THRESHOLD = st.floats(0, 1)


def first_run(conditions, patience):
    """Return the 1-based layer that ends the first run of ``patience`` true values, or L: one row, by hand."""
    run = 0
    for layer, holds in enumerate(conditions[:-1], start=1):
        run = run + 1 if holds else 0
        if run == patience:
            return layer
    return len(conditions)


@given(traces(), PATIENCE)
def test_pabee_waits_for_equal_answers(trace, patience):
    answers = trace.logits.argmax(dim=-1).tolist()
    expected = [first_run([False, *(a == b for a, b in pairwise(row))], patience) for row in answers]
    assert replay(ConsecutiveRule(SameAnswerRule(), patience), trace).tolist() == expected


@given(st.integers(0, 2**31), PATIENCE, st.floats(0.05, 1))
def test_a_regression_waits_for_answers_that_move_little(seed, patience, tolerance):
    values = torch.randn(32, LAYERS, generator=torch.Generator().manual_seed(seed))
    moves = (values[:, 1:] - values[:, :-1]).abs() < tolerance
    expected = [first_run([False, *row], patience) for row in moves.tolist()]
    rule = ConsecutiveRule(SameAnswerRule(tolerance), patience)
    assert replay(rule, trace_of(values.unsqueeze(-1))).tolist() == expected


@given(traces(), PATIENCE, THRESHOLD)
def test_pcee_bert_waits_for_confident_layers(trace, patience, threshold):
    probs = trace.logits.softmax(dim=-1)
    confident = -(probs * probs.log()).sum(dim=-1) / math.log(CLASSES) < threshold
    expected = [first_run(row, patience) for row in confident.tolist()]
    assert replay(PCEEBERT(patience=patience).rule(None, threshold), trace).tolist() == expected


def test_distances_by_hand():
    now, before = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = (0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3) + 0.9 * math.log(0.9 / 0.7)) / 2
    expected += 0.1 * math.log(0.1 / 0.3) / 2
    assert jensen_shannon(now, before).item() == pytest.approx(expected)


@pytest.mark.parametrize("patience", [1.5, 0, -1, math.inf, math.nan])
def test_a_patience_that_counts_no_layers_is_refused(patience):
    with pytest.raises(UserError, match=rf"number.*, got {patience}"):
        ConsecutiveRule(SameAnswerRule(), patience)


@pytest.mark.parametrize("name", ["pabee", "leebert", "token-patience"])
def test_a_knob_between_two_patiences_is_refused_and_not_rounded(tiny_model, tiny_decoder, name):
    method = get_method(name)
    model = tiny_decoder() if isinstance(method, TokenMethod) else tiny_model()
    assert method.rule(model, 2.0).patience == 2
    with pytest.raises(UserError, match=r"whole number, at least 1, got 1\.5"):
        method.rule(model, 1.5)
