"""Texts stay the same: rows that are regrouped, prompts that are read in passes and kept, keys that are filled in."""

from statistics import mean
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from comparing import tokens_of, written
from hypothesis import given, strategies as st
from known_exits import KnownRandomRule

from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import counted_calls, watched_calls
from consistentee import ExitRule, NeverExit, StaticRule, UserError, generate, generate_encoded
from consistentee.engine import cache as cache_module, token_batch
from consistentee.engine.cache import CacheHoleError
from consistentee.engine.missing_keys import Propagation
from consistentee.engine.token_batch import ReadPrompts, TokenBatch, pass_sizes

PROMPTS = random_prompts(11, seed=3)
NEW_TOKENS = 8
MIXED = KnownRandomRule(seed=1)
IN_FLIGHT = {"in_flight": 5, "batch_size": 2}


class HistoryRule(ExitRule):
    """Leaves by what the states at all exits so far add up to, as the rule of no method does."""

    reads_history = True

    def should_exit(self, view, state):
        return view.history.sum(dim=(1, 2)) > 0


SCHEDULES = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=7),
        "new_tokens": st.integers(1, 7),
        "ends": st.sets(st.integers(4, 40), min_size=1, max_size=6),
        "rule": st.one_of(st.builds(HistoryRule), st.builds(KnownRandomRule, st.integers(0, 999))),
        "seed": st.integers(0, 999),
        "batch_size": st.integers(1, 4),
        "more_in_flight": st.integers(0, 4),
        "kv": st.sampled_from(["propagate", "exact"]),
    }
)


@given(SCHEDULES)
def test_texts_do_not_depend_on_the_schedule(model, plan):
    generator = torch.Generator().manual_seed(plan["seed"])
    prompts = [torch.randint(5, 40, (length,), generator=generator).tolist() for length in plan["lengths"]]
    rule, options = plan["rule"], {"max_new_tokens": plan["new_tokens"], "kv": plan["kv"]}
    size, in_flight = plan["batch_size"], plan["batch_size"] + plan["more_in_flight"]
    with mock.patch.object(model.backbone.generation_config, "eos_token_id", sorted(plan["ends"])):
        alone = generate_encoded(model, prompts, rule, batch_size=1, **options)
        regrouped = generate_encoded(model, prompts, rule, batch_size=size, in_flight=in_flight, **options)
    assert written(regrouped) == written(alone)
    assert regrouped.ended_by == alone.ended_by


def test_batches_are_full_though_tokens_leave_everywhere(model):
    def rows_in_a_call(**options) -> tuple[float, float]:
        """Return how many rows a layer and the LM head have on average."""
        heads = []
        head = (model.backbone.lm_head, lambda _, states, __: heads.append(len(states[0])))
        with counted_calls(model) as calls, watched_calls([head]):
            options |= {"max_new_tokens": 20, "batch_size": 4, "end_at_eos": False}
            generate_encoded(model, model.encode(PROMPTS * 2), MIXED, **options)
        return mean([rows for rows, tokens in calls if tokens == 1]), mean(heads)

    in_step, in_flight = rows_in_a_call(), rows_in_a_call(in_flight=16)
    assert in_step[0] < 2.8
    assert in_flight[0] > 3.6
    assert in_flight[1] > 4.5, "the LM head reads two batches at once; prompts come one by one"


@pytest.mark.parametrize("options", [{"batch_size": 2}, IN_FLIGHT])
def test_when_every_text_was_completed_is_noted(model, options):
    out = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, **options)
    assert len(out.completed_seconds) == len(PROMPTS)
    assert 0 < min(out.completed_seconds) < 0.9 * max(out.completed_seconds), "the last had to wait"
    assert max(out.completed_seconds) <= out.prefill_seconds + out.decode_seconds


def test_a_cache_beyond_memory_is_refused(model, monkeypatch):
    monkeypatch.setattr(cache_module.psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
    with pytest.raises(UserError, match=r"keys and values of 9 rows of up to .* ask for fewer rows at a time"):
        generate(model, PROMPTS, MIXED, max_new_tokens=20, in_flight=9, batch_size=2)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Rows of every batch of prompts that layers have run on."""
    rows: list[int] = []
    read = TokenBatch.read
    monkeypatch.setattr(TokenBatch, "read", lambda batch, *prompts: rows.append(len(batch)) or read(batch, *prompts))
    return rows


@pytest.mark.parametrize("kv", ["propagate", "exact"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rules_that_share_a_reading_write_what_each_writes_alone(tiny_decoder, passes, family, kv):
    model, read, rules = tiny_decoder(family), ReadPrompts(), [NeverExit(), StaticRule(1), MIXED]
    options = {"kv": kv, "max_new_tokens": 6, "batch_size": 4}
    alone = [written(generate(model, PROMPTS, rule, **options)) for rule in rules]
    passes.clear()
    assert [written(generate(model, PROMPTS, rule, read=read, **options)) for rule in rules] == alone
    assert passes == [4, 4, 3], "the first rule has read for all"


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_rows_without_room_are_read_again(model, passes, batches):
    prompts = ["ba be", "bi bo", "bu da", "de di"]
    options = {"max_new_tokens": 3, "batch_size": 2}
    expected = written(generate(model, prompts, MIXED, **options))
    passes.clear()
    columns = len(model.encode(prompts[:1])[0])
    numbers = 2 * model.num_layers * columns * model.stepper.kv_heads * model.stepper.head_dim + model.width
    read = ReadPrompts(max_bytes=batches * 2 * numbers * model.backbone.dtype.itemsize)
    for _ in range(2):
        assert written(generate(model, prompts, MIXED, read=read, **options)) == expected
    assert len(passes) == 2 + 2 - batches


@pytest.mark.parametrize(("lengths", "sizes"), [([9], [1]), ([50, 50, 50], [3]), ([200, 199, 8, 8, 7], [2, 3])])
def test_passes_by_hand(lengths, sizes):
    assert pass_sizes(lengths) == sizes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pass_in_tokens", [0, 10_000])
def test_passes_do_not_change_what_is_written(tiny_decoder, monkeypatch, family, pass_in_tokens):
    model = tiny_decoder(family)
    alone = written(generate(model, PROMPTS, MIXED, max_new_tokens=6, batch_size=1))
    monkeypatch.setattr(token_batch, "PASS_IN_TOKENS", pass_in_tokens)
    assert written(generate(model, PROMPTS, MIXED, max_new_tokens=6, batch_size=4)) == alone


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
