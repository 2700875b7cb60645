"""Prompts of one batch: how they are read in passes, and that this does not change what comes of them."""

import pytest
import torch

from consistentee.engine import token_batch
from consistentee.engine.token_batch import TokenBatch, pass_sizes


@pytest.mark.parametrize(("lengths", "sizes"), [([9], [1]), ([50, 50, 50], [3]), ([200, 199, 8, 8, 7], [2, 3])])
def test_passes_by_hand(lengths, sizes):
    assert pass_sizes(lengths) == sizes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pass_in_tokens", [0, 10_000])
def test_passes_do_not_change_what_a_prompt_gives(tiny_decoder, monkeypatch, family, pass_in_tokens):
    def read(*prompts: list[int]) -> tuple[TokenBatch, torch.Tensor]:
        batch = TokenBatch(model, len(prompts), 12)
        return batch, batch.read(batch.rows(), prompts)

    model, prompts = tiny_decoder(family), [[5, 6], [7, 8, 9, 10, 11], [5] * 9, [6, 7]]
    with torch.inference_mode():
        alone = torch.cat([read(prompt)[1] for prompt in prompts])
        monkeypatch.setattr(token_batch, "PASS_IN_TOKENS", pass_in_tokens)
        batch, together = read(*prompts)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert batch.cache.ledger.lengths.tolist() == [2, 5, 9, 2]
    assert batch.cache.ledger.stored.tolist() == [[2, 5, 9, 2]] * model.num_layers
    assert all(stored.isfinite().all() for stored in batch.cache.layers)
