"""Methods that draft: branches, and transformers' own drafts; texts, and counts that hooks on the layers confirm."""

import pytest
import torch
from comparing import tokens_of
from torch import nn

from baselines.kangaroo import Kangaroo
from baselines.stock_drafts import AssistantEarlyExit, PromptLookup
from benchmarks.measure.flops import DecodingFlops
from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import stock_tokens
from consistentee.engine.generate import generate
from consistentee.engine.sampling import Sampling
from consistentee.engine.speculation import generate_speculatively
from consistentee.errors import UserError
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


def test_texts_equal_the_full_models(tiny_decoder):
    model = tiny_decoder("llama")
    full = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    for method in (PromptLookup(), AssistantEarlyExit()):
        for knob in method.knob_values(model):
            written = method.generate(model, PROMPTS, knob, max_new_tokens=NEW_TOKENS, batch_size=3)
            assert [tokens.tolist() for tokens in written.tokens] == [tokens.tolist() for tokens in full.tokens]
            assert (written.texts, written.ended_by) == (full.texts, full.ended_by)
    stop = full.texts[0][2:5]
    stopped = generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS, stop=[stop])
    assert PromptLookup().generate(model, PROMPTS, 3.0, max_new_tokens=NEW_TOKENS, stop=[stop]).texts == stopped.texts


@pytest.mark.parametrize(("method", "knob", "draft_layer"), [(PromptLookup(), 3.0, 0), (AssistantEarlyExit(), 2.0, 2)])
def test_stock_drafts_count_their_layers(tiny_decoder, method, knob, draft_layer):
    model = tiny_decoder("llama")
    calls = [0] * 5
    for layer in range(1, 5):

        def count(*_, layer=layer):
            calls[layer] += 1

        model.stepper.layer_module(layer).register_forward_hook(count)
    written = method.generate(model, PROMPTS[:1], knob, max_new_tokens=NEW_TOKENS)
    assert written.passes == [calls[4] - 1], "the first pass reads the prompt"
    assert written.drafted[0] > 0
    if draft_layer:
        assert written.drafted == [calls[1] - calls[4]], "layer 1 runs in every pass, and for every drafted token"
    assert written.layer_calls == sum(calls[1:]) - 4
    assert written.accepted[0] == len(written.tokens[0]) - calls[4]
    flops = DecodingFlops(model)
    read, columns = written.drafted[0] + written.passes[0], written.prompt_tokens[0] + len(written.tokens[0]) / 2
    layers = sum(layer(read, round(read * columns)) for layer in flops.layers)
    again = sum(layer(written.drafted[0], round(written.drafted[0] * columns)) for layer in flops.layers[:draft_layer])
    heads = read + (written.drafted[0] if draft_layer else 0)
    assert flops.speculating(written) == layers + again + heads * flops.head


def test_drafts_refuse_sampling_and_rows_in_flight(tiny_decoder):
    assert AssistantEarlyExit().knob_values(tiny_decoder("gpt2")) == (4.0,)
    model = tiny_decoder("llama")
    for method, knob in ((PromptLookup(), 3.0), (AssistantEarlyExit(), 2.0), (Kangaroo(), 2.0)):
        for option in ({"sampling": Sampling()}, {"in_flight": 4}):
            with pytest.raises(UserError, match=f"takes no {next(iter(option))}; {method.knob.name}"):
                method.generate(model, PROMPTS, knob, **option)
    assert PromptLookup().generate(model, PROMPTS, 0.0, sampling=Sampling(), max_new_tokens=2).decoded_tokens == 4
    assert torch.equal(
        PromptLookup().generate(model, PROMPTS[:1], 3.0, max_new_tokens=1).tokens[0],
        generate(model, PROMPTS[:1], NeverExit(), max_new_tokens=1).tokens[0],
    )
