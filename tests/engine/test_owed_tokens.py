"""Layers that tokens skipped: what fills their keys and values."""

import pytest
import torch
from comparing import tokens_of
from conftest import random_prompts
from transformers import DynamicCache

from baselines.references import RandomRule
from benchmarks.testing.watching import counted_calls
from consistentee.engine.cache import CacheHoleError
from consistentee.engine.generate import generate, generate_encoded
from consistentee.engine.model_settings import begin_texts
from consistentee.engine.owed_tokens import Propagation
from consistentee.engine.token_decoder import TokenDecoder, Writing
from consistentee.rules.exit_rule import StaticRule

NEW_TOKENS = 8
PROMPTS = random_prompts(6, seed=2)
MIXED = RandomRule(2.5, seed=0)


def full_depth_cache(model, tokens: list[int]) -> DynamicCache:
    """Return the keys and values of the stock model's own pass."""
    with torch.no_grad():
        return model.backbone(torch.tensor([tokens]), use_cache=True, return_dict=False)[1]


class RandomUntilTheLast(RandomRule):
    """Lets the last token run through all layers, which pays all debts."""

    def should_exit(self, view, state):
        return super().should_exit(view, state) & (view.steps < NEW_TOKENS)


def run_to_the_end(model, rows, kv: str) -> tuple[TokenDecoder, list[list[int]]]:
    """Decode without ever dropping a row."""
    rule = RandomUntilTheLast(2.5, seed=0)
    texts = begin_texts(model, rows, max_new_tokens=NEW_TOKENS + 1)
    decoder = TokenDecoder(model, texts, Writing(rule, NEW_TOKENS + 1, len(rows), kv))
    written = [[token] for token in decoder.prefill()]
    for _ in range(NEW_TOKENS):
        for of_row, token in zip(written, decoder.step()[0], strict=True):
            of_row.append(token)
    return decoder, written


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_exact_keys_and_values_are_those_of_full_depth(tiny_decoder, family):
    model = tiny_decoder(family)
    rows = model.encode(PROMPTS[:5])
    decoder, written = run_to_the_end(model, rows, "exact")
    for row, prompt in enumerate(rows):
        stock = full_depth_cache(model, [*prompt, *written[row][:-1]])
        for ours, layer in zip(decoder.batch.cache.layers, stock.layers, strict=True):
            theirs = torch.cat([layer.keys[0], layer.values[0]])
            torch.testing.assert_close(ours[row, :, : theirs.shape[1]], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", [{"kv": "propagate"}, {"kv": "exact"}, {"in_flight": 4, "batch_size": 2}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_column_is_read_that_was_never_written(tiny_decoder, family, way, monkeypatch):
    """Unwritten memory holds NaN here, and a NaN that is read once is in everything that follows."""
    model = tiny_decoder(family)
    expected = tokens_of(generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, **way))
    nothing = torch.empty

    def poisoned(*shape, **options):
        memory = nothing(*shape, **options)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    monkeypatch.setattr(torch, "empty", poisoned)
    assert tokens_of(generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, **way)) == expected


def test_a_debt_that_is_not_paid_is_an_error(tiny_decoder, monkeypatch):
    model = tiny_decoder()
    monkeypatch.setattr(Propagation, "run", lambda self, leg, hidden: self.batch.run(leg.layers, hidden, leg.context))
    with pytest.raises(CacheHoleError, match="layer"):
        generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("kv", ["propagate", "exact"])
def test_layers_that_nobody_reads_again_cost_nothing(tiny_decoder, kv, monkeypatch):
    model = tiny_decoder()
    monkeypatch.setattr(type(model.stepper), "project", None)
    prompts = [prompt for prompt in model.encode(PROMPTS) if len(prompt) > 1]
    with counted_calls(model) as calls:
        out = generate_encoded(model, prompts, StaticRule(1), max_new_tokens=NEW_TOKENS, kv=kv)
    assert sum(rows for rows, tokens in calls if tokens == 1) == out.decoded_tokens > 0
    assert not torch.cat(out.late_layers).any()
