"""Dynamic vocabulary pruning: K columns of the LM head after the first exit, with the same fate for every token."""

import pytest
import torch
from comparing import tokens_of, written

from baselines.calm import DecayingThresholdRule
from benchmarks.testing.tiny import random_prompts
from consistentee.backbones import decoders
from consistentee.backbones.decoders import logits_among
from consistentee.engine.generate import generate
from consistentee.rules.exit_rule import ConsecutiveRule, NeverExit, SameAnswerRule, ThresholdRule
from consistentee.rules.vocabulary import CANDIDATES, CandidatesView, prune_vocabulary
from consistentee.signals import entropy, margin, top_probability
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.token_view import TokenView
from consistentee.traces.walk import replay
from consistentee.training.decoder import exit_answers

PROMPTS = random_prompts(4, seed=5)
NEW_TOKENS = 6
RULES = {
    "margin": ThresholdRule(margin, 0.2, "above"),
    "entropy": ThresholdRule(entropy, 1.0, "below"),
    "patience": ConsecutiveRule(SameAnswerRule(), 1),
    "falling": DecayingThresholdRule(margin, 0.3, 4.0, NEW_TOKENS),
}


@pytest.fixture(scope="module")
def model(tiny_decoders):
    return tiny_decoders.model("llama")


def texts(model, rule, **options):
    return written(generate(model, PROMPTS, rule, max_new_tokens=NEW_TOKENS, **options))


def trace_of(model, rule=None):
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
        _, trace = trace_of(model)
        assert torch.equal(replay(whole, trace), replay(rule, trace))

    def test_replayed_exits_equal_live_exits_in_every_batch(self, model, rule):
        pruned = prune_vocabulary(rule, 3)
        for kv in ("propagate", "exact"):
            alone = texts(model, pruned, kv=kv, batch_size=1)
            assert texts(model, pruned, kv=kv, batch_size=4) == alone
            assert texts(model, pruned, kv=kv, in_flight=5, batch_size=2) == alone
        out, trace = trace_of(model, pruned)
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
