"""Closing layers: exits that skip the middle of the stack and run its end, wherever a token exits."""

import pytest
import torch
from comparing import tokens_of, written
from eager_decoder import eager_tokens

from baselines.calm import CALMTokensClassifier
from baselines.references import RandomRule
from baselines.skipdecode import ScheduledRule
from benchmarks.testing.cases import TOKEN_RECIPE as RECIPE
from benchmarks.testing.tiny import make_text_task, random_prompts
from consistentee import BranchSpec, MultiExitDecoder, UserError, generate, generate_speculatively, record_tokens, sweep
from consistentee.methods.consistent_ee.tokens import ConsistentEETokensLadder
from consistentee.methods.method import get_method, train_method
from consistentee.rules.exit_rule import StaticRule, ThresholdRule
from consistentee.signals import margin
from consistentee.training.decoder import exit_answers

PROMPTS = random_prompts(9, seed=3)
NEW_TOKENS = 8
CLOSED = {"adapter": "shared", "exit_layers": [2, 3], "closing_layers": 1}
MIXED = RandomRule(2.9, seed=1)
BY_MARGIN = ThresholdRule(margin, 0.5, exit_when="above")


@pytest.fixture(scope="module")
def model(tiny_decoders):
    return tiny_decoders.model("llama", **CLOSED)


def test_an_exit_runs_as_many_layers_as_its_number_and_so_does_a_saved_copy(model, tmp_path):
    assert [list(segment) for segment in model.segments] == [[1], [2], [3]]
    assert [list(model.skipped_layers(layer)) for layer in model.exit_layers] == [[2, 3], [3], []]
    model.save_pretrained(tmp_path)
    loaded = MultiExitDecoder.from_pretrained(tmp_path)
    assert list(loaded.last_layers) == list(model.last_layers) == [4]
    assert written(generate(loaded, PROMPTS, MIXED)) == written(generate(model, PROMPTS, MIXED))


@pytest.mark.parametrize(
    ("family", "rule"), [("llama", ScheduledRule([4, 2, 3, 2, 4, 2])), ("gpt2", MIXED)], ids=["llama", "gpt2"]
)
def test_texts_are_those_of_a_decoder_whose_cache_is_always_full(tiny_decoder, family, rule):
    model = tiny_decoder(family, **CLOSED)
    expected = [eager_tokens(model, prompt, rule, NEW_TOKENS) for prompt in model.encode(PROMPTS)]
    for options in ({"batch_size": 1}, {"batch_size": 9}, {"batch_size": 2, "in_flight": 5}):
        out = generate(model, PROMPTS, rule, max_new_tokens=NEW_TOKENS, **options)
        assert [text[:2] for text in written(out)] == expected


@pytest.mark.parametrize("layer", [2, 3, 4])
def test_a_trace_of_a_static_exit_predicts_its_text(model, layer):
    """A prompt runs at full depth in a trace too, and what follows behind the exit."""
    out = generate(model, PROMPTS, StaticRule(layer), max_new_tokens=NEW_TOKENS)
    trace = record_tokens(model, list(zip(model.encode(PROMPTS), tokens_of(out), strict=True)))
    predicted = exit_answers(trace).predictions[:, model.exit_layers.index(layer)]
    assert predicted.tolist() == torch.cat(out.tokens).tolist()


@pytest.mark.parametrize("method", [ConsistentEETokensLadder(), CALMTokensClassifier()])
def test_rules_that_read_states_are_trained_and_decode(tiny_decoder, method):
    model = method.fit(tiny_decoder(**CLOSED), make_text_task(), RECIPE)
    knobs = list(method.knob_values(model))
    exits = set()
    for knob in (knobs[0], knobs[len(knobs) // 2], knobs[-1]):
        options = {"max_new_tokens": NEW_TOKENS}
        alone, together = (method.generate(model, PROMPTS, knob, batch_size=size, **options) for size in (1, 9))
        assert written(alone) == written(together)
        exits |= {*torch.cat(alone.exit_layers).tolist()}
    assert len(exits) > 1, "the knob matters"


@pytest.mark.parametrize("name", ["calm-tokens-softmax", "free", "kangaroo", "layerskip", "lite"])
def test_other_methods_are_refused_before_they_are_trained(model, name, monkeypatch):
    method = get_method(name)
    monkeypatch.setattr(type(method), "fit", lambda *_: pytest.fail("trained for nothing"))
    with pytest.raises(UserError, match="closing layers"):
        train_method(method, model, make_text_task(), RECIPE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: generate(model, PROMPTS, MIXED, kv="exact"), "propagate"),
        (lambda model: generate_speculatively(model, PROMPTS, draft_layer=2), "cannot draft"),
        (lambda model: model.add_branch(2, BranchSpec(4)), "branch"),
        (lambda model: generate(model, PROMPTS, BY_MARGIN, max_new_tokens=2), "nothing before the closing"),
        (lambda model: sweep([BY_MARGIN], record_tokens(model, [([5], [6, 7])])), "nothing before the closing"),
    ],
    ids=["keys and values of full depth", "drafts", "branches", "predictions", "predictions in a trace"],
)
def test_uses_that_need_every_layer_are_refused(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_closing_layers_that_do_not_fit_are_refused(tiny_decoder):
    with pytest.raises(UserError, match="fewer than the 2 of the first"):
        tiny_decoder(adapter="shared", exit_layers=[2, 3], closing_layers=2)
    with pytest.raises(UserError, match="shared"):
        tiny_decoder(exit_layers=[2, 3], closing_layers=1)
