"""Self-speculative decoding: the text is the full model's, whatever the draft; drafts are counted, and run once."""

import pytest
import torch
from comparing import tokens_of

from benchmarks.testing.tiny import random_prompts
from consistentee import BranchSpec, NeverExit, generate, generate_speculatively

PROMPTS = random_prompts(4, seed=5)
NEW_TOKENS = 10


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_are_those_of_the_full_model(agreeing_decoder, family):
    model = agreeing_decoder(family)
    full = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    rates = []
    for draft_layer, draft_tokens in ((1, 3), (2, 1), (2, 4), (3, 99)):
        out = generate_speculatively(
            model, PROMPTS, draft_layer=draft_layer, draft_tokens=draft_tokens, max_new_tokens=NEW_TOKENS
        )
        assert tokens_of(out) == tokens_of(full)
        assert (out.texts, out.ended_by, out.prompt_tokens) == (full.texts, full.ended_by, full.prompt_tokens)
        assert torch.cat(out.exit_layers).unique().tolist() == [4]
        rates.append(out.acceptance_rate)
        for tokens, accepted, drafted, passes in zip(out.tokens, out.accepted, out.drafted, out.passes, strict=True):
            assert 0 <= accepted <= drafted <= passes * draft_tokens
            assert accepted + passes >= len(tokens) - 1 >= accepted
    assert 0 < max(rates) < 1, "some drafts are accepted, and some are not"


def test_a_draft_of_the_full_model_is_always_accepted(agreeing_decoder):
    """Deep layers that change nothing: 9 tokens after the first, 4 a pass but for the last."""
    model = agreeing_decoder(deep=0.0)
    model.backbone.generation_config.eos_token_id = model.tokenizer.eos_token = None
    out = generate_speculatively(model, PROMPTS, draft_layer=2, draft_tokens=3, max_new_tokens=NEW_TOKENS)
    assert out.acceptance_rate == 1
    assert out.passes == [3] * 4
    assert out.accepted == out.drafted == [6] * 4


@pytest.mark.parametrize("branch", [None, BranchSpec(copied_layer=3, with_mlp=False)], ids=["no branch", "branch"])
def test_drafted_tokens_are_not_run_again_and_are_counted(agreeing_decoder, branch):
    model = agreeing_decoder()
    watched = {layer: model.stepper.layer_module(layer) for layer in (2, 3)}
    if branch is not None:
        watched["branch"] = model.add_branch(2, branch).layer
    read = {name: [] for name in watched}
    for name, module in watched.items():
        module.register_forward_hook(lambda _, given, __, seen=read[name]: seen.append(given[0].shape[1]))
    out = generate_speculatively(model, PROMPTS[:1], draft_layer=2, draft_tokens=3, max_new_tokens=NEW_TOKENS)
    (prompt,), (drafts,), (passes,) = out.prompt_tokens, out.drafted, out.passes
    assert read[2] == read.get("branch", read[2]) == [prompt] + [1] * (drafts + passes)
    assert read[3][0] == prompt
    assert len(read[3]) == 1 + passes
    assert sum(read[3][1:]) == drafts + passes
    assert out.drafter_in_layers == (model.branch(2).size_in_layers if branch else 0)
    assert out.layer_calls == (drafts + passes) * (2 + out.drafter_in_layers) + passes * 2


def test_stop_strings_end_tokens_and_streams(agreeing_decoder):
    model, stream = agreeing_decoder(), []
    endless = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    options = {"max_new_tokens": NEW_TOKENS, "stop": [endless.texts[1][3:6]]}
    expected = generate(model, PROMPTS, NeverExit(), **options)
    out = generate_speculatively(model, PROMPTS, draft_layer=2, **options, stream=stream.append)
    assert (out.texts, out.ended_by) == (expected.texts, expected.ended_by)
    assert "stop" in out.ended_by
    assert [new.token for new in stream] == torch.cat(out.tokens).tolist()
    model.backbone.generation_config.eos_token_id = int(endless.tokens[0][4])
    out = generate_speculatively(model, PROMPTS, draft_layer=2, max_new_tokens=NEW_TOKENS)
    assert tokens_of(out) == tokens_of(generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS))
    assert out.ended_by[0] == "eos"
