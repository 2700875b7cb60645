"""Kangaroo: the full model's text whatever the adapter drafts; its own keys and values; drafts that end when unsure."""

import pytest
import torch
from conftest import make_text_task, random_prompts
from torch import nn

from baselines.kangaroo import Kangaroo
from consistentee.engine.generate import Generations, generate
from consistentee.engine.sampling import Sampling
from consistentee.engine.speculation import SpeculativeGenerations, generate_speculatively
from consistentee.engine.token_batch import ReadPrompts
from consistentee.errors import UserError
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit
from consistentee.training.recipe import TokenRecipe

PROMPTS = random_prompts(4, seed=5)
NEW_TOKENS = 10


@pytest.fixture
def drafting_decoder(tiny_decoder):
    """Return a function: (family, deep) -> a model with adapters, and layers 3 and 4 that add so much of what they do.

    With 0, the exits say what layer 4 says. An adapter adds as much of its attention.
    """

    def build(family: str = "llama", deep: float = 0.2) -> MultiExitDecoder:
        model = tiny_decoder(family)
        with torch.no_grad():
            for layer in (3, 4):
                for name, parameter in model.stepper.layer_module(layer).named_parameters():
                    if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight", "c_proj.bias")):
                        parameter.mul_(deep)
            for layer in (1, 2, 3):
                model.add_branch(layer, BranchSpec(copied_layer=3, with_mlp=False))
        return model

    return build


def drafted(model: MultiExitDecoder, **options: object) -> SpeculativeGenerations:
    return generate_speculatively(model, PROMPTS, max_new_tokens=NEW_TOKENS, **options)


def full_text(model: MultiExitDecoder) -> Generations:
    return generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)


def endless(model: MultiExitDecoder) -> MultiExitDecoder:
    """Let a model write on behind tokens that end a text."""
    model.backbone.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    return model


def test_an_adapter_that_always_agrees(drafting_decoder):
    """9 tokens after the first, 4 a pass but for the last: no column of a draft is ever taken back."""
    out = drafted(endless(drafting_decoder(deep=0.0)), draft_layer=2, draft_tokens=3)
    assert out.acceptance_rate == 1
    assert out.passes == [3] * 4
    assert out.accepted == out.drafted == [6] * 4


def test_an_adapter_that_never_agrees(drafting_decoder):
    """It names the least likely token: all of every draft is taken back, and each pass gives one token."""
    model = endless(drafting_decoder(deep=0.0))
    with torch.no_grad():
        model.branch(2).norm.weight.mul_(-1)
    out = drafted(model, draft_layer=2, draft_tokens=3)
    assert out.accepted == [0] * 4
    assert out.passes == [NEW_TOKENS - 1] * 4
    # A draft is as long as what is left to write, less the token that follows it: 3 six times, then 2, 1 and 0.
    assert out.drafted == [6 * 3 + 2 + 1] * 4
    assert out.texts == full_text(model).texts


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


def test_every_exit_gets_an_adapter_that_learns(tiny_decoder):
    recipe = TokenRecipe(branch_steps=2, branch_batch_size=4)
    model = Kangaroo().fit(tiny_decoder(), make_text_task(), recipe)
    specs = {1: BranchSpec(2, with_mlp=False), 2: BranchSpec(3, with_mlp=False), 3: BranchSpec(4, with_mlp=False)}
    assert model.description.branches == specs
    parts = dict(model.branch(1).layer.named_children())
    assert isinstance(parts["post_attention_layernorm"], nn.Identity)
    assert not list(parts["mlp"].parameters())
    full = full_text(model)
    for knob in (2.0, 4.0):
        written = Kangaroo().generate(model, PROMPTS, knob, max_new_tokens=NEW_TOKENS, batch_size=3, read=ReadPrompts())
        assert written.texts == full.texts
        assert isinstance(written, SpeculativeGenerations) == (knob < 4)


def test_what_cannot_be_drafted_is_named(drafting_decoder):
    model = drafting_decoder()
    with pytest.raises(UserError, match="takes no sampling"):
        Kangaroo().generate(model, ["ba"], 2.0, sampling=Sampling())
    with pytest.raises(UserError, match="takes no in_flight"):
        Kangaroo().generate(model, ["ba"], 2.0, in_flight=4)
    with pytest.raises(UserError, match="threshold"):
        Kangaroo(threshold=1.5)
