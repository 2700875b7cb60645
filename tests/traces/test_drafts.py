"""Drafts replayed on texts of the full model: counts equal those of decoding, and the cheapest drafts are chosen."""

import numpy as np
import pytest
from comparing import tokens_of

from baselines.kangaroo import Kangaroo
from baselines.layerskip import LayerSkip
from benchmarks.testing.tiny import random_prompts
from consistentee.engine.generate import generate
from consistentee.engine.speculation import generate_speculatively
from consistentee.models.decoder.branches import BranchSpec, SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.drafts import DraftTrace, trace_drafts

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
