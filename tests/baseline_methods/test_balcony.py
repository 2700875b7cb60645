"""Balcony: a decoder of layers 1 to e and the exit's, which is what a stock model of these layers would be."""

import pytest
import torch
from conftest import make_text_task, random_prompts
from torch import nn

from baselines.balcony import Balcony
from benchmarks.testing.watching import stock_tokens
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.recipe import TokenRecipe

PROMPTS = random_prompts(5, seed=6)
NEW_TOKENS = 6
BALCONY = Balcony()


def trained(model: MultiExitDecoder, steps: int = 6) -> MultiExitDecoder:
    recipe = TokenRecipe(branch_steps=steps, branch_batch_size=4, branch_learning_rate=1e-2)
    return BALCONY.fit(model, make_text_task(), recipe)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_are_those_of_a_stock_model_of_these_layers(tiny_decoder, family):
    model = trained(tiny_decoder(family))
    written = [BALCONY.generate(model, PROMPTS, 2.0, max_new_tokens=NEW_TOKENS, batch_size=size) for size in (1, 5)]
    written.append(BALCONY.generate(model, PROMPTS, 2.0, max_new_tokens=NEW_TOKENS, batch_size=2, in_flight=4))
    stock = model.backbone.model if family == "llama" else model.backbone.transformer
    layers, norm = ("layers", "norm") if family == "llama" else ("h", "ln_f")
    setattr(stock, layers, nn.ModuleList([*getattr(stock, layers)[:2], model.branch(2).layer]))
    setattr(stock, norm, model.branch(2).norm)
    model.backbone.config.num_hidden_layers = 3
    expected = [stock_tokens(model, prompt, NEW_TOKENS) for prompt in model.encode(PROMPTS)]
    for out in written:
        assert [tokens.tolist() for tokens in out.tokens] == expected
        assert torch.cat(out.exit_layers).unique().tolist() == [3]
