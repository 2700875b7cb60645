"""Signals, thresholds and patience on logits by hand; exits that are known in advance; dynamic vocabulary pruning."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from comparing import tokens_of, written
from hypothesis import given, strategies as st
from known_exits import KnownRandomRule
from tensors_by_hand import trace_of

from baselines.calm import DecayingThresholdRule
from baselines.f_pabee import jensen_shannon
from baselines.lite import DepthThresholdRule
from baselines.pcee_bert import PCEEBERT
from baselines.skipdecode import ScheduledRule
from benchmarks.testing.tiny import random_prompts
from consistentee import ConsecutiveRule, NeverExit, SameAnswerRule, SomeLayersRule, StaticRule, ThresholdRule, generate
from consistentee.backbones import decoders
from consistentee.backbones.decoders import logits_among
from consistentee.errors import UserError
from consistentee.rules.view import predictions_of
from consistentee.rules.vocabulary import CANDIDATES, CandidatesView, prune_vocabulary
from consistentee.signals import entropy, margin, normalised_entropy, top_probability
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.token_view import TokenView
from consistentee.traces.walk import replay, walk
from consistentee.training.decoder import exit_answers


def view_of(logits):
    return trace_of(torch.tensor(logits, dtype=torch.float32).unsqueeze(1)).view(1)


def test_signals_at_the_two_ends():
    uniform, certain = view_of([[0.0, 0.0, 0.0, 0.0]]), view_of([[60.0, 0.0, 0.0, 0.0]])
    ends = {entropy: (math.log(4), 0), normalised_entropy: (1, 0), top_probability: (0.25, 1), margin: (0, 1)}
    for signal, expected in ends.items():
        assert (signal(uniform).item(), signal(certain).item()) == pytest.approx(expected, abs=1e-6)


def test_threshold_is_strict_on_both_sides():
    view = view_of([[0.0, 0.0], [5.0, 0.0]])
    assert ThresholdRule(top_probability, 0.5, "above").should_exit(view, {}).tolist() == [False, True]
    assert ThresholdRule(margin, 0.5, "below").should_exit(view, {}).tolist() == [True, False]
    assert ThresholdRule(margin, 0.0, "below").should_exit(view, {}).tolist() == [False, False]


def test_a_regression_has_no_probabilities():
    with pytest.raises(UserError, match="regression"):
        entropy(view_of([[0.3]]))
    assert predictions_of(torch.tensor([[[0.25], [0.5]]])).tolist() == [[0.25, 0.5]]


def test_a_rule_that_wraps_another_reads_what_it_reads():
    class Earlier(NeverExit):
        reads_history = True

    for wrapped in (SomeLayersRule(Earlier(), 2), ConsecutiveRule(Earlier(), 2), prune_vocabulary(Earlier(), 8)):
        assert wrapped.reads_history
    assert not SomeLayersRule(NeverExit(), 2).reads_history


RULES_THAT_KNOW = {
    "never": NeverExit(),
    "static": StaticRule(3),
    "static between exits": StaticRule(2),
    "schedule": ScheduledRule([4, 3, 2, 1]),
    "random": KnownRandomRule(seed=5),
}


@pytest.mark.parametrize("rule", RULES_THAT_KNOW.values(), ids=RULES_THAT_KNOW)
def test_exits_known_in_advance_are_those_of_a_rule_that_is_asked(tiny_decoder, rule):
    model = tiny_decoder(exit_layers=(1, 3))
    prompts, steps = list(range(40, 80)), [place % 9 for place in range(40)]
    hidden, asked = torch.zeros(40, 1, model.width), torch.zeros(40, dtype=torch.long)
    views = (TokenView(model, layer, hidden, steps, prompts) for layer in model.exit_layers)
    for view, leaves in walk(rule, views):
        asked[leaves] = view.layer
    known = [rule.exit_in_advance(model.exit_layers, *token) for token in zip(steps, prompts, strict=True)]
    assert known == asked.tolist()


def test_a_subclass_with_its_own_decision_is_asked_at_every_layer():
    class Later(StaticRule):
        def should_exit(self, view, state):
            return super().should_exit(view, state) & (view.layer > 3)

    assert Later(2).exit_in_advance((1, 3), 1, 0) is None
    assert SomeLayersRule(NeverExit(), 3).asked_at(3)
    assert not SomeLayersRule(NeverExit(), 3).asked_at(1)
    assert [DepthThresholdRule({1: 1.0, 3: 0.5}).asked_at(layer) for layer in (1, 3)] == [False, True]


LAYERS, CLASSES = 8, 3


@st.composite
def traces(draw):
    """Return 64 rows whose answers change now and then: a random walk of the logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    steps = torch.randn(64, LAYERS, CLASSES, generator=generator) * draw(st.floats(0.1, 3))
    return trace_of(steps.cumsum(dim=1))


PATIENCE = st.integers(1, LAYERS)


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


@given(traces(), PATIENCE, st.floats(0, 1))
def test_pcee_bert_waits_for_confident_layers(trace, patience, threshold):
    probs = trace.logits.softmax(dim=-1)
    confident = -(probs * probs.log()).sum(dim=-1) / math.log(CLASSES) < threshold
    expected = [first_run(row, patience) for row in confident.tolist()]
    rule = PCEEBERT(patience=patience).rule(SimpleNamespace(description=None), threshold)
    assert replay(rule, trace).tolist() == expected


def test_distances_by_hand():
    now, before = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = (0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3) + 0.9 * math.log(0.9 / 0.7)) / 2
    expected += 0.1 * math.log(0.1 / 0.3) / 2
    assert jensen_shannon(now, before).item() == pytest.approx(expected)


@pytest.mark.parametrize("patience", [1.5, 0, -1, math.inf, math.nan])
def test_a_patience_that_counts_no_layers_is_refused(patience):
    with pytest.raises(UserError, match=rf"number.*, got {patience}"):
        ConsecutiveRule(SameAnswerRule(), patience)


PROMPTS = random_prompts(4, seed=5)
NEW_TOKENS = 6
RULES = {
    "margin": ThresholdRule(margin, 0.2, "above"),
    "entropy": ThresholdRule(entropy, 1.0, "below"),
    "patience": ConsecutiveRule(SameAnswerRule(), 1),
    "falling": DecayingThresholdRule(margin, 0.3, 4.0, NEW_TOKENS),
}


def texts(model, rule, **options):
    return written(generate(model, PROMPTS, rule, max_new_tokens=NEW_TOKENS, **options))


def recorded(model, rule=None):
    out = generate(model, PROMPTS, rule or NeverExit(), max_new_tokens=NEW_TOKENS, kv="exact", batch_size=3)
    rows = zip(model.encode(PROMPTS), tokens_of(out), strict=True)
    return out, record_tokens(model, list(rows))


@pytest.mark.parametrize("bias", [False, True])
def test_pruned_logits_equal_those_of_the_whole_head(bias, monkeypatch):
    head, states = torch.nn.Linear(8, 30, bias=bias), torch.randn(5, 8)
    tokens = torch.stack([torch.randperm(30)[:4] for _ in range(5)])
    expected = head(states).gather(1, tokens)
    for numbers_at_a_time in (decoders.NUMBERS_AT_A_TIME, 64):  # the second holds two rows
        monkeypatch.setattr(decoders, "NUMBERS_AT_A_TIME", numbers_at_a_time)
        torch.testing.assert_close(logits_among(head, states, tokens), expected)


def test_first_exit_fixes_the_candidates_and_later_ones_read_no_more(model):
    hidden, rule = torch.randn(3, 1, 32), prune_vocabulary(ThresholdRule(margin, 2.0, "above"), 4)
    state = rule.start(3, 4)
    first, second = (TokenView(model, layer, hidden, [4, 1, 2], [1, 2, 3]) for layer in (1, 2))
    rule.should_exit(first, state)
    candidates = model.logits(1, hidden[:, 0]).topk(4).indices.sort().values
    assert torch.equal(state[CANDIDATES], candidates)
    rule.should_exit(second, state)
    assert "logits" not in vars(second)
    logits = second.logits_of(lambda rows: rows[[0, 2]])
    among = model.logits(2, hidden[:, 0]).gather(1, candidates)
    torch.testing.assert_close(logits.gather(1, candidates[[0, 2]]), among[[0, 2]])
    assert (logits.isinf().sum(dim=1) == model.stepper.vocabulary - 4).all()
    best = candidates.gather(1, among.argmax(dim=1, keepdim=True)).squeeze(1)
    pruned = CandidatesView(second, state, 4)
    assert torch.equal(second.predictions, best)
    assert torch.equal(pruned.predictions, best)
    torch.testing.assert_close(top_probability(pruned), among.softmax(dim=-1).amax(dim=-1))
    assert pruned.steps.tolist() == [4, 1, 2]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
class TestTexts:
    def test_all_tokens_as_candidates_are_the_whole_head(self, model, rule):
        whole = prune_vocabulary(rule, model.stepper.vocabulary)
        assert texts(model, whole) == texts(model, rule)
        assert texts(model, prune_vocabulary(rule, 10**6), in_flight=5, batch_size=2) == texts(model, rule)
        _, trace = recorded(model)
        assert torch.equal(replay(whole, trace), replay(rule, trace))

    def test_replayed_exits_equal_live_exits_in_every_batch(self, model, rule):
        pruned = prune_vocabulary(rule, 3)
        for kv in ("propagate", "exact"):
            alone = texts(model, pruned, kv=kv, batch_size=1)
            assert texts(model, pruned, kv=kv, batch_size=4) == alone
            assert texts(model, pruned, kv=kv, in_flight=5, batch_size=2) == alone
        out, trace = recorded(model, pruned)
        exits = torch.cat(out.exit_layers)
        assert torch.equal(replay(pruned, trace), exits)
        by_exit = exit_answers(trace, candidates=3).predictions
        predicted = by_exit.gather(1, exits.unsqueeze(1) - 1).squeeze(1)  # an exit at each layer
        assert torch.equal(predicted, torch.cat(out.tokens))


def test_answers_of_pruned_exits_are_kept_apart(tiny_decoder, tmp_path):
    model = tiny_decoder()
    trace = record_tokens(model, [(prompt, [7, 9, 3]) for prompt in model.encode(PROMPTS)])
    for candidates in (None, 4):
        exit_answers(trace, candidates=candidates, store=tmp_path)
    assert len(list(tmp_path.glob("answers-*"))) == 2
