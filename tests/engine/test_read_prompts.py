"""How prompts are read, once for several knobs and in passes: nothing that is written depends on it."""

import pytest
from comparing import written

from baselines.references import RandomRule
from benchmarks.testing.tiny import random_prompts
from consistentee.engine import token_batch
from consistentee.engine.generate import generate
from consistentee.engine.token_batch import ReadPrompts, TokenBatch, pass_sizes
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit, StaticRule

PROMPTS = random_prompts(9, seed=3)
RULES = [NeverExit(), StaticRule(1), RandomRule(2.5, seed=1)]
OPTIONS = {"max_new_tokens": 6, "batch_size": 4}


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Rows of every batch of prompts that layers have run on."""
    rows: list[int] = []
    read = TokenBatch.read
    monkeypatch.setattr(TokenBatch, "read", lambda batch, *prompts: rows.append(len(batch)) or read(batch, *prompts))
    return rows


def bytes_of(model: MultiExitDecoder, rows: list[list[int]]) -> int:
    """Memory of what is kept of a batch: keys and values of every token and layer, and the last states."""
    columns = max(map(len, rows))
    numbers = 2 * model.num_layers * columns * model.stepper.kv_heads * model.stepper.head_dim + model.width
    return len(rows) * numbers * model.backbone.dtype.itemsize


@pytest.mark.parametrize("kv", ["propagate", "exact"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rules_that_share_a_reading_write_what_each_writes_alone(tiny_decoder, passes, family, kv):
    model, read = tiny_decoder(family), ReadPrompts()
    alone = [written(generate(model, PROMPTS, rule, kv=kv, **OPTIONS)) for rule in RULES]
    passes.clear()
    assert [written(generate(model, PROMPTS, rule, kv=kv, read=read, **OPTIONS)) for rule in RULES] == alone
    assert passes == [4, 4, 1], "the first rule has read for all"


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_what_finds_no_room_is_read_again(tiny_decoder, passes, batches):
    model = tiny_decoder()
    prompts = ["ba be", "bi bo", "bu da", "de di"]
    options = {"max_new_tokens": 3, "batch_size": 2}
    expected = written(generate(model, prompts, RULES[2], **options))
    passes.clear()
    read = ReadPrompts(max_bytes=batches * bytes_of(model, model.encode(prompts[:2])))
    for _ in range(2):
        assert written(generate(model, prompts, RULES[2], read=read, **options)) == expected
    assert len(passes) == 2 + 2 - batches


@pytest.mark.parametrize(("lengths", "sizes"), [([9], [1]), ([50, 50, 50], [3]), ([200, 199, 8, 8, 7], [2, 3])])
def test_passes_by_hand(lengths, sizes):
    assert pass_sizes(lengths) == sizes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pass_in_tokens", [0, 10_000])
def test_passes_do_not_change_what_is_written(tiny_decoder, monkeypatch, family, pass_in_tokens):
    model = tiny_decoder(family)
    alone = written(generate(model, PROMPTS, RULES[2], max_new_tokens=6, batch_size=1))
    monkeypatch.setattr(token_batch, "PASS_IN_TOKENS", pass_in_tokens)
    assert written(generate(model, PROMPTS, RULES[2], **OPTIONS)) == alone
