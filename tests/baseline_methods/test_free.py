"""FREE: one shallow exit or full depth, and nothing approximated."""

import pytest
import torch
from conftest import make_text_task, random_prompts

from baselines.free import FREE
from consistentee.engine.generate import generate
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.traces.token_trace import record_tokens
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(exit_steps=3, exit_batch_size=16)


@pytest.fixture
def model(tiny_decoder):
    return FREE().fit(tiny_decoder(exit_layers=(1, 2, 3)), make_text_task(), RECIPE)


def test_tokens_leave_at_the_shallow_exit_or_not_at_all(model):
    method = get_method("free", shallow_layer=2)
    written = method.generate(model, random_prompts(12), 0.3, max_new_tokens=10)
    assert set(torch.cat(written.exit_layers).tolist()) == {2, 4}


def test_every_token_is_read_off_states_of_full_depth(model):
    """Keys and values are exact, so a full-depth pass over the text gives the very tokens, and propagation does not."""
    prompts, rule = random_prompts(12, seed=2), FREE().rule(model, 0.3)
    rows = model.encode(prompts)

    def read_off_full_depth(written):
        trace = record_tokens(model, [(row, tokens.tolist()) for row, tokens in zip(rows, written.tokens, strict=True)])
        exits = torch.cat(written.exit_layers)
        places = torch.where(exits == 1, 0, 3)
        states = trace.speaking[torch.arange(len(trace)), places]
        shallow, deep = (model.logits(layer, states).argmax(-1) for layer in (1, 4))
        return torch.where(exits == 1, shallow, deep)

    exact = FREE().generate(model, prompts, 0.3, max_new_tokens=12)
    assert torch.equal(read_off_full_depth(exact), torch.cat(exact.tokens))
    propagated = generate(model, prompts, rule, max_new_tokens=12, kv="propagate")
    assert not torch.equal(read_off_full_depth(propagated), torch.cat(propagated.tokens))


def test_the_shallow_exit_is_near_a_quarter_of_the_depth(tiny_decoder):
    assert FREE().shallow_exit(tiny_decoder()) == 1
    assert FREE().shallow_exit(tiny_decoder(exit_layers=(2, 3))) == 2
    assert FREE(shallow_layer=3).shallow_exit(tiny_decoder()) == 3
    with pytest.raises(UserError, match="no exit at layer 3; its exit layers are 2, 4"):
        FREE(shallow_layer=3).fit(tiny_decoder(exit_layers=(2,)), make_text_task(), RECIPE)
