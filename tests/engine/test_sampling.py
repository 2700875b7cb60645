"""Choosing tokens: draws, and settings of ``generation_config``, which give the texts of stock ``generate``."""

from collections import Counter
from functools import partial
from itertools import chain

import pytest
import torch
from comparing import tokens_of

from baselines.references import RandomRule
from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import stock_tokens
from consistentee import NeverExit, Sampling, UserError, generate_speculatively
from consistentee.engine.generate import generate, generate_encoded

PROMPTS = random_prompts(5, seed=3)
NEW_TOKENS = 10
WAYS = ({"batch_size": 1}, {"batch_size": 8}, {"batch_size": 2, "in_flight": 4})


@pytest.fixture(scope="module")
def unset(tiny_decoders) -> list[list[int]]:
    """The tokens that the stock model writes without any setting."""
    model = tiny_decoders.model()
    return [stock_tokens(model, row, NEW_TOKENS) for row in model.encode(PROMPTS)]


@pytest.fixture(scope="module")
def usual(unset) -> list[int]:
    """The six tokens that the stock model writes most often, so that a setting about them changes texts."""
    return [token for token, _ in Counter(chain.from_iterable(unset)).most_common(6)]


SETTINGS = {
    "repetition penalty": lambda usual: {"repetition_penalty": 1.3},
    "suppressed tokens": lambda usual: {"suppress_tokens": usual[:3], "begin_suppress_tokens": usual[3:]},
    "minimum length": lambda usual: {"eos_token_id": usual, "min_length": 16},
    "minimum of new tokens": lambda usual: {"eos_token_id": usual[:2], "min_new_tokens": 4},
    "several ends": lambda usual: {"eos_token_id": usual[2:]},
    "n-grams": lambda usual: {"no_repeat_ngram_size": 2, "bad_words_ids": [usual[:1], usual[1:3]]},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_never_exit_writes_what_the_stock_model_writes(tiny_decoder, unset, usual, setting):
    model = tiny_decoder()
    rows = model.encode(PROMPTS)
    model.backbone.generation_config.update(**SETTINGS[setting](usual))
    expected = [stock_tokens(model, row, NEW_TOKENS) for row in rows]
    assert expected != unset, "the setting changes texts"
    for way in WAYS[1:]:
        assert tokens_of(generate_encoded(model, rows, NeverExit(), max_new_tokens=NEW_TOKENS, **way)) == expected
    drafted = generate_speculatively(model, PROMPTS, draft_layer=2, draft_tokens=3, max_new_tokens=NEW_TOKENS)
    assert tokens_of(drafted) == expected


def test_texts_follow_the_settings_in_any_batch_and_rules_read_what_the_exit_gives(tiny_decoder, usual):
    model, finite = tiny_decoder(), set()

    class Reads(RandomRule):
        def should_exit(self, view, state):
            finite.add(bool(view.logits.isfinite().all()))
            return super().should_exit(view, state)

    model.backbone.generation_config.update(suppress_tokens=usual[:3], repetition_penalty=1.2)
    for sampling in (None, Sampling(0.7, top_k=20, seed=1)):
        options = {"max_new_tokens": NEW_TOKENS, "sampling": sampling}
        texts = [tokens_of(generate(model, PROMPTS, Reads(2.5, seed=1), **options, **way)) for way in WAYS]
        assert texts[0] == texts[1] == texts[2]
        assert not set(usual[:3]) & {token for text in texts[0] for token in text}
    assert finite == {True}, "no rule sees a processed score"


def test_sampling_takes_from_the_model_what_a_call_leaves_open(tiny_decoder):
    model = tiny_decoder()

    def texts(sampling: Sampling) -> list[list[int]]:
        return tokens_of(generate(model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS, sampling=sampling))

    by_call, free = texts(Sampling(0.5, 3, 0.9)), texts(Sampling())
    model.backbone.generation_config.update(temperature=0.5, top_k=3, top_p=0.9, do_sample=True)
    assert texts(Sampling()) == by_call != free == texts(Sampling(1.0, 0, 1.0))
    model.backbone.generation_config.update(typical_p=0.5)
    with pytest.raises(UserError, match="typical_p"):
        texts(Sampling())


def test_stop_strings_of_the_model_end_texts(tiny_decoder):
    model = tiny_decoder()
    call = partial(generate, model, PROMPTS, NeverExit(), max_new_tokens=NEW_TOKENS)
    endless = call().texts
    stop = endless[2][4:7]
    expected = call(stop=[stop]).texts
    model.backbone.generation_config.stop_strings = stop
    assert call().texts == expected != endless


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("num_beams", 4), ("guidance_scale", 1.5), ("use_mtp", True), ("max_time", 1.0)),
        *(("forced_bos_token_id", 3), ("forced_eos_token_id", 3), ("sequence_bias", {(3,): 1.0})),
        *(("encoder_repetition_penalty", 1.2), ("encoder_no_repeat_ngram_size", 2)),
        ("exponential_decay_length_penalty", (2, 1.1)),
    ],
)
def test_settings_that_exits_cannot_follow_are_refused(tiny_decoder, setting, value):
    model = tiny_decoder()
    setattr(model.backbone.generation_config, setting, value)
    with pytest.raises(UserError, match=f"generation_config sets {setting}, which decoding with exits cannot follow"):
        generate(model, PROMPTS, NeverExit())
    with pytest.raises(UserError, match=setting):
        generate_speculatively(model, PROMPTS, draft_layer=2)


LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, -torch.inf])
LIKELIEST = torch.tensor([-torch.inf, 2.0, 1.0, -torch.inf, -torch.inf])


@pytest.mark.parametrize(
    ("sampling", "logits"),
    [
        *((Sampling(temperature), LOGITS / temperature) for temperature in (0.5, 1.0, 3.0)),
        *((sampling, LIKELIEST) for sampling in (Sampling(top_k=2), Sampling(top_p=0.8))),
        (Sampling(top_k=1), torch.tensor([0, 1, 0, 0, 0]).log()),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling, logits):
    drawn = sampling.choose(LOGITS.expand(4000, -1), range(4000), [3] * 4000)
    frequencies = torch.bincount(drawn, minlength=len(LOGITS)) / 4000
    torch.testing.assert_close(frequencies, logits.softmax(dim=-1), rtol=0, atol=0.03)
    assert not frequencies[logits.isinf()].any(), "what has no probability is never drawn"


def test_a_draw_depends_on_seed_prompt_and_step_alone():
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    keys = list(range(64))
    together = Sampling(seed=5).choose(logits, keys, [2] * 64)
    alone = [int(Sampling(seed=5).choose(logits[i : i + 1], [i], [2])) for i in keys]
    assert together.tolist() == alone
    assert together.tolist() != Sampling(seed=6).choose(logits, keys, [2] * 64).tolist()
    assert together.tolist() != Sampling(seed=5).choose(logits, keys, [3] * 64).tolist()
