"""The trace of tokens and its views: what is recorded beside what, what rules read, and replays; of drafts, too."""

import numpy as np
import pytest
import torch
from comparing import tokens_of

from baselines.kangaroo import Kangaroo
from baselines.layerskip import LayerSkip
from benchmarks.testing.tiny import random_prompts
from consistentee import HeadSpec, PromptSplit, UserError, generate, generate_speculatively, replay, sweep
from consistentee.models.decoder.branches import BranchSpec, SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import ExitStates, MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit, ThresholdRule
from consistentee.signals import margin
from consistentee.traces.drafts import DraftTrace, trace_drafts
from consistentee.traces.token_trace import encode_rows, record_tokens
from consistentee.traces.token_view import prompt_key, token_key

ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]
SPLIT = PromptSplit("train", ["ba be", "bi bo bu da"], [" de di", " ga ge gi go"])


def test_recorded_states_belong_to_the_token_that_they_predict(tiny_decoder):
    """Row 0 reads 2 7 9 30 31: after 9 it should say 30, after 30 31, after 31 3. Row 1 reads 2 8 40."""
    model = tiny_decoder(exit_layers=(2,))
    trace = record_tokens(model, ROWS)
    assert trace.targets.tolist() == [30, 31, 3, 40, 3]
    assert trace.row.tolist() == [0, 0, 0, 1, 1]
    assert trace.step.tolist() == [0, 1, 2, 0, 1]
    assert trace.may_exit.tolist() == [1, 2, 4], "the first token of a response is read off the prompt"
    assert trace.exit_layers == (2, 4)
    alone = [torch.tensor([[2, 7, 9, 30, 31]]), torch.tensor([[2, 8, 40]])]
    states = [model.exit_states(tokens, torch.ones_like(tokens, dtype=torch.bool)).answer_states[0] for tokens in alone]
    expected = torch.cat([states[0][2:5], states[1][1:3]])
    torch.testing.assert_close(trace.answer_states, expected, atol=1e-5, rtol=1e-4)


def test_references_become_responses_that_end(tiny_decoder):
    model = tiny_decoder()
    rows = encode_rows(model, SPLIT, max_prompt_tokens=None, max_new_tokens=4)
    assert [prompt for prompt, _ in rows] == model.encode(SPLIT.prompts)
    assert [model.decode(response) for _, response in rows] == [" de di", " ga ge gi go"]
    assert [response[-1] in model.end_tokens for _, response in rows] == [True, False], "the second one is cut before"
    assert [len(response) for _, response in rows] == [3, 4]


def test_impossible_rows_are_refused(tiny_decoder):
    with pytest.raises(UserError, match="the prompt of row 2 is empty"):
        record_tokens(tiny_decoder(), [ROWS[0], ([], [5])])
    with pytest.raises(UserError, match="the prompt of row 1 has 3 tokens, and with 200 new ones"):
        record_tokens(tiny_decoder(), [([2, 7, 9], [5] * 200)])


def test_a_pass_is_stored_once_and_survives_the_training_of_exits(tiny_decoder, tmp_path, monkeypatch):
    model = tiny_decoder()
    options = {"dtype": torch.float16, "store": tmp_path}
    first = record_tokens(model, ROWS, **options)
    model.add_head("policy", HeadSpec())
    with torch.no_grad():
        for parameter in model.exit_adapters.parameters():
            parameter.add_(1.0)
    monkeypatch.setattr(model, "exit_states", lambda *_: pytest.fail("the store was not used"))
    again = record_tokens(model, ROWS, **options)
    assert torch.equal(first.answer_states, again.answer_states)
    assert first.answer_states.dtype == torch.float16
    monkeypatch.undo()
    record_tokens(model, ROWS[:1], **options)
    assert len(list(tmp_path.glob("hidden-*.safetensors"))) == 2


def test_states_beyond_float16_stay_float32(tiny_decoder, monkeypatch):
    model = tiny_decoder()
    real = model.exit_states

    def far_states(*inputs):
        states = real(*inputs).rule_states * 1e5
        return ExitStates(states, states)

    monkeypatch.setattr(model, "exit_states", far_states)
    trace = record_tokens(model, ROWS, dtype=torch.float16)
    assert trace.answer_states.dtype == torch.float32
    assert trace.answer_states.isfinite().all()


def test_a_rule_is_asked_about_one_step_at_a_time(tiny_decoder):
    asked = []

    class FromLayer(ExitRule):
        """Exit at a layer that depends on the step, as with a decaying threshold."""

        def should_exit(self, view, state):
            asked.append((view.places[0], view.layer, view.rows))
            return torch.full((view.rows,), view.layer >= view.places[0])

    trace = record_tokens(tiny_decoder(exit_layers=(1, 2)), ROWS)
    assert replay(FromLayer(), trace).tolist() == [4, 1, 2, 4, 1]
    assert asked == [(1, 1, 2), (2, 1, 1), (2, 2, 1)]


def test_a_sweep_computes_logits_once_and_equals_single_replays(tiny_decoder, monkeypatch):
    model = tiny_decoder()
    trace = record_tokens(model, ROWS)
    rules = [ThresholdRule(margin, threshold, "above") for threshold in (0.0, 0.1, 0.3, 2.0)]
    single = torch.stack([replay(rule, trace) for rule in rules])
    asked, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda layer, hidden: asked.append(layer) or logits(layer, hidden))
    assert torch.equal(sweep(rules, trace), single)
    assert len(asked) == 2 * 3, "two steps, three exits before the last"


def test_row_keys_differ_between_prompts_and_steps():
    keys = {token_key(prompt_key(prompt), step) for prompt in ([1], [1, 2], [2, 1]) for step in range(1000)}
    assert len(keys) == 3000
    assert all(0 <= key < 2**31 for key in keys)
    assert sum(key < 2**30 for key in keys) == pytest.approx(1500, abs=150)


PROMPTS = random_prompts(3, seed=5)
NEW_TOKENS = 10


@pytest.fixture
def model(agreeing_decoder) -> MultiExitDecoder:
    """A decoder whose drafts are often accepted, with a branch at layer 1."""
    model = agreeing_decoder()
    model.add_branch(1, BranchSpec(copied_layer=2))
    return model


def rows_of(model):
    written = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    return list(zip(model.encode(PROMPTS), tokens_of(written), strict=True))


def decoded(model, tokens, threshold=0.0, **drafter):
    return generate_speculatively(
        model, PROMPTS, draft_tokens=tokens, threshold=threshold, max_new_tokens=NEW_TOKENS, **drafter
    )


def test_drafts_by_hand():
    """Two of three tokens agree: drafts of 2 give 3 tokens a pass, and end early after unsure tokens."""
    agrees, probability = np.array([True, True, False] * 3), np.array([0.9, 0.1, 0.9] * 3)
    trace = DraftTrace(1, 10, [agrees], [probability])
    assert [trace.count(tokens) for tokens in (1, 2, 3)] == [(6, 6), (6, 3), (9, 3)]
    assert trace.layer_calls(2) == 3 * (3 * 1 + 9)
    assert trace.count(3, 0.5) == (6, 3), "the second token of each draft is unsure, and is the last"
    assert trace.count(2, tokens_at_most=9) == (6, 3)
    assert trace.count(8, tokens_at_most=9) == (8 + 5 + 2, 3), "a pass gives one token besides its draft"


@pytest.mark.parametrize("draft_layer", [1, 2, 3])
def test_a_replay_without_threshold_is_exact(model, draft_layer):
    trace = trace_drafts(model, rows_of(model), draft_layer=draft_layer)
    for tokens in (1, 4, 99):
        written = decoded(model, tokens, draft_layer=draft_layer)
        assert trace.count(tokens, tokens_at_most=NEW_TOKENS - 1) == (sum(written.drafted), sum(written.passes))
        assert trace.layer_calls(tokens, tokens_at_most=NEW_TOKENS - 1) == pytest.approx(written.layer_calls)
    for threshold in (0.1, 0.3):
        written = decoded(model, 4, threshold, draft_layer=draft_layer)
        _, passes = trace.count(4, threshold, NEW_TOKENS - 1)
        assert passes == sum(written.passes), "what ends a draft before a rejected token is known exactly"


def test_the_model_without_sublayers_is_replayed(model):
    nothing, some = SkippedSublayers((), ()), SkippedSublayers((2,), (3,))
    whole = trace_drafts(model, rows_of(model), skipped=nothing)
    assert all(agrees.all() for agrees in whole.agrees)
    calls = trace_drafts(model, rows_of(model), skipped=some).layer_calls(3, tokens_at_most=NEW_TOKENS - 1)
    written = decoded(model, 3, skipped=some)
    assert calls == pytest.approx(written.layer_calls, rel=0.2), "states attended to differ"


@pytest.mark.parametrize("method", [LayerSkip(), Kangaroo()])
def test_the_cheapest_drafts_are_chosen_kept_and_used(model, method, tmp_path):
    full = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    assert method.draft_settings(model, 2.0) == method.published
    method.choose_drafts(model, rows_of(model), NEW_TOKENS)
    assert set(model.description.drafts) == {1.0, 2.0, 3.0}, "at full depth nothing is drafted"
    model.save_pretrained(tmp_path)
    loaded = MultiExitDecoder.from_pretrained(tmp_path)
    assert loaded.description.drafts == model.description.drafts
    for knob, chosen in model.description.drafts.items():
        written = method.generate(loaded, PROMPTS, knob, max_new_tokens=NEW_TOKENS)
        assert tokens_of(written) == tokens_of(full)
        assert sum(written.drafted) > 0
        if isinstance(method, LayerSkip) and knob == 2:
            calls = [decoded(model, length, draft_layer=round(knob)).layer_calls for length in range(1, 9)]
            assert chosen == (1 + int(np.argmin(calls)), 0.0)
            assert written.layer_calls == min(calls)


def test_parameters_that_are_set_are_not_chosen(model):
    LayerSkip(draft_tokens=3).choose_drafts(model, rows_of(model), NEW_TOKENS)
    assert model.description.drafts[2.0] == (3, 0.0)
    assert LayerSkip().draft_settings(model, 2.0) == (3, 0.0)
    assert LayerSkip(draft_tokens=5, threshold=0.5).draft_settings(model, 2.0) == (5, 0.5)
