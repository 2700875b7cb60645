"""Drafts of transformers' own ``generate``: the full model's texts, and counts that hooks on the layers confirm."""

import pytest
import torch

from baselines.kangaroo import Kangaroo
from baselines.stock_drafts import AssistantEarlyExit, PromptLookup
from benchmarks.measure.flops import DecodingFlops
from benchmarks.testing.tiny import random_prompts
from consistentee.engine.generate import generate
from consistentee.engine.sampling import Sampling
from consistentee.errors import UserError
from consistentee.rules.exit_rule import NeverExit

PROMPTS = random_prompts(3, seed=5)
NEW_TOKENS = 10


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
    assert PromptLookup().generate(model, PROMPTS, 0.0, sampling=Sampling(), max_new_tokens=2).decoded_tokens == 3
    assert torch.equal(
        PromptLookup().generate(model, PROMPTS[:1], 3.0, max_new_tokens=1).tokens[0],
        generate(model, PROMPTS[:1], NeverExit(), max_new_tokens=1).tokens[0],
    )
