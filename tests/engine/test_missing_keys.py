"""Layers that tokens skipped: what fills their keys and values."""

import pytest
import torch
from comparing import tokens_of

from baselines.references import RandomRule
from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import counted_calls
from consistentee.engine.cache import CacheHoleError
from consistentee.engine.generate import generate, generate_encoded
from consistentee.engine.missing_keys import Propagation
from consistentee.rules.exit_rule import StaticRule
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import replay

NEW_TOKENS = 8
PROMPTS = random_prompts(6, seed=2)
MIXED = RandomRule(2.5, seed=0)


class Noting(RandomRule):
    """Exits at random, and notes the states that it sees, by the key of a token and the layer."""

    def __init__(self) -> None:
        super().__init__(2.5, seed=0)
        self.seen: dict[tuple[int, int], torch.Tensor] = {}

    def should_exit(self, view, state):
        self.seen |= {(key, view.layer): seen for key, seen in zip(view.row_keys.tolist(), view.pooled, strict=True)}
        return super().should_exit(view, state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_exact_keys_and_values_are_those_of_full_depth(tiny_decoder, family):
    """Tokens that attend to them have the states of a trace, in which all tokens have run all layers."""
    model, live, replayed = tiny_decoder(family), Noting(), Noting()
    out = generate(model, PROMPTS, live, max_new_tokens=NEW_TOKENS, kv="exact", batch_size=3)
    replay(replayed, record_tokens(model, list(zip(model.encode(PROMPTS), tokens_of(out), strict=True))))
    assert len(live.seen) > 2 * len(PROMPTS)
    for place, state in live.seen.items():
        torch.testing.assert_close(state, replayed.seen[place], rtol=1e-4, atol=1e-4)


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


def test_a_hole_in_the_cache_is_an_error(tiny_decoder, monkeypatch):
    model = tiny_decoder()
    monkeypatch.setattr(Propagation, "run", lambda self, ran, hidden: self.batch.run(ran.layers, hidden, ran.context))
    with pytest.raises(CacheHoleError, match="layer"):
        generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("kv", ["propagate", "exact"])
def test_layers_that_no_token_reads_again_cost_nothing(tiny_decoder, kv, monkeypatch):
    model = tiny_decoder()
    monkeypatch.setattr(type(model.stepper), "project", None)
    prompts = [prompt for prompt in model.encode(PROMPTS) if len(prompt) > 1]
    with counted_calls(model) as calls:
        out = generate_encoded(model, prompts, StaticRule(1), max_new_tokens=NEW_TOKENS, kv=kv)
    assert sum(rows for rows, tokens in calls if tokens == 1) == out.decoded_tokens > 0
    assert not torch.cat(out.late_layers).any()
