"""FREE: one shallow exit or full depth, and nothing approximated."""

import pytest
import torch
from conftest import make_text_task, random_prompts

from baselines.free import FREE
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(exit_steps=3, exit_batch_size=16)


@pytest.fixture
def model(tiny_decoder):
    return FREE().fit(tiny_decoder(exit_layers=(1, 2, 3)), make_text_task(), RECIPE)


def test_tokens_leave_at_the_shallow_exit_or_not_at_all(model):
    method = get_method("free", shallow_layer=2)
    written = method.generate(model, random_prompts(12), 0.3, max_new_tokens=10)
    assert set(torch.cat(written.exit_layers).tolist()) == {2, 4}


def test_the_shallow_exit_is_near_a_quarter_of_the_depth(tiny_decoder):
    assert FREE().shallow_exit(tiny_decoder()) == 1
    assert FREE().shallow_exit(tiny_decoder(exit_layers=(2, 3))) == 2
    assert FREE(shallow_layer=3).shallow_exit(tiny_decoder()) == 3
    with pytest.raises(UserError, match="no exit at layer 3; its exit layers are 2, 4"):
        FREE(shallow_layer=3).fit(tiny_decoder(exit_layers=(2,)), make_text_task(), RECIPE)
