"""Prompts of one batch: how they are read in passes, and that this does not change what comes of them."""

import pytest
import torch

from consistentee.engine import prompt_batch
from consistentee.engine.prompt_batch import PromptBatch, pass_sizes


@pytest.mark.parametrize(("lengths", "sizes"), [([9], [1]), ([50, 50, 50], [3]), ([200, 199, 8, 8, 7], [2, 3])])
def test_passes_by_hand(lengths, sizes):
    assert pass_sizes(lengths) == sizes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pass_in_tokens", [0, 10_000])
def test_passes_do_not_change_what_a_prompt_gives(tiny_decoder, monkeypatch, family, pass_in_tokens):
    model, prompts = tiny_decoder(family), [[5, 6], [7, 8, 9, 10, 11], [5] * 9, [6, 7]]
    alone = torch.cat([PromptBatch(model, [prompt], 0).prefill() for prompt in prompts])
    monkeypatch.setattr(prompt_batch, "PASS_IN_TOKENS", pass_in_tokens)
    with torch.inference_mode():
        together = PromptBatch(model, prompts, 3)
        torch.testing.assert_close(together.prefill(), alone, atol=1e-4, rtol=1e-4)
    assert together.cache.ledger.lengths.tolist() == [9] * 4
    for layer in range(1, model.num_layers + 1):
        assert together.cache.ledger.stored[layer - 1].tolist() == [9] * 4
        assert together.cache.keys[layer - 1][:, :, :9].isfinite().all()
