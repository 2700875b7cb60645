"""Balcony: a decoder of layers 1 to e and the exit's, which is what a stock model of these layers would be."""

import pytest
import torch
from conftest import make_text_task, random_prompts
from torch import nn

from baselines.balcony import Balcony
from benchmarks.kinds.prompt_decoder import PromptDecoder
from benchmarks.kinds.text_evaluation import replay_points
from benchmarks.measure.decoding_flops import DecodingFlops
from benchmarks.testing.reference import stock_tokens
from consistentee.data.prompts import PromptSplit
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack
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


def test_replays_are_of_the_decoder_that_writes(tiny_decoder):
    """Untrained, the exit behind layer 3 is layer 4; every exit costs one layer more than it has before it."""
    model = trained(tiny_decoder(), steps=0)
    prompts = PromptSplit("test", PROMPTS, [" ba"] * len(PROMPTS))
    decoder = PromptDecoder(model, BALCONY, "key", max_new_tokens=NEW_TOKENS, batch_size=4, store=None)
    points = replay_points(decoder, prompts)
    assert [(point.knob, point.average_layers) for point in points] == [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 4.0)]
    assert points[0].agreement < 1
    assert [point.agreement for point in points[2:]] == [1.0, 1.0]
    assert decoder.at(1.0, prompts).average_layers == 2.0


def test_operations_are_those_of_the_layers_that_run(tiny_decoder):
    model = trained(tiny_decoder(), steps=0)
    whole, part = DecodingFlops(model), DecodingFlops(DecoderStack(model, 2))
    assert part.layers == [*whole.layers[:2], whole.layers[3]]
    assert part.head == whole.head
    written = BALCONY.generate(model, PROMPTS, 2.0, max_new_tokens=NEW_TOKENS)
    head = whole.head * written.decoded_tokens
    counted = part.decoding(written, BALCONY.rule(model, 2.0), "propagate")
    assert 4 * (counted - head) == 3 * (whole.full_decoding(written) - head)
    assert part.prefill([5]) - part.head == 3 * (whole.prefill([5]) - whole.head) / 4
