"""Branches: a stack with one is a stock model of fewer layers, and an adapter drafts for the full model."""

import pytest
import torch
from comparing import tokens_of
from torch import nn

from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import stock_tokens
from consistentee.engine.generate import generate
from consistentee.engine.speculation import generate_speculatively
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit, StaticRule

PROMPTS = random_prompts(4, seed=5)
NEW_TOKENS = 10


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_of_a_stack_are_those_of_a_stock_model_of_its_layers(tiny_decoder, family):
    model = tiny_decoder(family)
    model.add_branch(2, BranchSpec(copied_layer=4))
    written = [
        generate(DecoderStack(model, 2), PROMPTS, StaticRule(2), max_new_tokens=NEW_TOKENS, **way)
        for way in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 2, "in_flight": 3})
    ]
    stock = model.backbone.model if family == "llama" else model.backbone.transformer
    layers, norm = ("layers", "norm") if family == "llama" else ("h", "ln_f")
    setattr(stock, layers, nn.ModuleList([*getattr(stock, layers)[:2], model.branch(2).layer]))
    setattr(stock, norm, model.branch(2).norm)
    model.backbone.config.num_hidden_layers = 3
    expected = [stock_tokens(model, prompt, NEW_TOKENS) for prompt in model.encode(PROMPTS)]
    for out in written:
        assert tokens_of(out) == expected
        assert torch.cat(out.exit_layers).unique().tolist() == [3]


@pytest.fixture
def drafting_decoder(agreeing_decoder):
    """Return a function: deep -> an agreeing decoder with adapters; an adapter adds as much of its attention."""

    def build(deep: float = 0.2) -> MultiExitDecoder:
        model = agreeing_decoder(deep=deep)
        for layer in (1, 2, 3):
            model.add_branch(layer, BranchSpec(copied_layer=3, with_mlp=False))
        return model

    return build


def test_an_adapter_that_never_agrees_costs_every_draft(drafting_decoder):
    """It names the least likely token: all of every draft is taken back, and each pass gives one token."""
    model = drafting_decoder(deep=0.0)
    model.backbone.generation_config.eos_token_id = model.tokenizer.eos_token = None
    with torch.no_grad():
        model.branch(2).norm.weight.mul_(-1)
    out = generate_speculatively(model, PROMPTS, max_new_tokens=NEW_TOKENS, draft_layer=2, draft_tokens=3)
    assert out.accepted == [0] * 4
    assert out.passes == [NEW_TOKENS - 1] * 4
    # A draft is as long as what is left to write, less the token that follows it: 3 six times, then 2, 1 and 0.
    assert out.drafted == [6 * 3 + 2 + 1] * 4
    assert out.texts == generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS).texts


def test_the_adapter_reads_every_token_once_and_is_counted(drafting_decoder):
    model = drafting_decoder()
    read: list[int] = []
    model.branch(2).layer.register_forward_hook(lambda module, given, output: read.append(given[0].shape[1]))
    out = generate_speculatively(model, PROMPTS[:1], draft_layer=2, draft_tokens=3, max_new_tokens=NEW_TOKENS)
    (drafts,), (passes,) = out.drafted, out.passes
    assert read == [out.prompt_tokens[0]] + [1] * (drafts + passes)
    share = model.branch(2).size_in_layers
    assert out.drafter_in_layers == share
    assert out.layer_calls == (drafts + passes) * (2 + share) + passes * 2
