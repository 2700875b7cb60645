"""SkipDecode: exits that fall along the text, and never a missing key or value."""

import pytest
import torch
from conftest import make_text_task, random_prompts
from hypothesis import given, settings, strategies as st

from baselines.skipdecode import SkipDecode, falling_schedule
from consistentee.engine.generate import generate
from consistentee.training.recipe import TokenRecipe

SIX = (6, 12, 18, 24, 30)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (6, [30, 6, 6, 6, 6, 6]),
        (12, [30, 18, 18, 12, 12, 6]),  # the line 18 15 12 9 6: 1.5 tokens, rounded 2, above 12, and 3.5, so 4, above 6
        (18, [30, 30, 24, 18, 12, 6]),
        (24, [30, 30, 30, 24, 24, 18]),  # the line 30 27 24 21 18
        (7, [30, 12, 6, 6, 6, 6]),  # the line 8 7.5 7 6.5 6: 5 sixths of a token above 6
        (30, [30, 30, 30, 30, 30, 30]),
    ],
)
def test_schedule_by_hand(mean, expected):
    assert falling_schedule(SIX, mean, 6) == expected


@settings(deadline=None)
@given(st.floats(6, 30), st.floats(6, 30), st.integers(1, 80))
def test_schedules_fall_and_are_ordered(first, second, tokens):
    small, large = (falling_schedule(SIX, mean, tokens) for mean in sorted((first, second)))
    assert small == sorted(small, reverse=True)
    assert all(a <= b for a, b in zip(small, large, strict=True))
    decoded = falling_schedule(SIX, first, tokens + 1)[1:]
    assert sum(decoded) == pytest.approx(first * tokens, abs=0.5 * (SIX[-1] - SIX[0]) + 1e-6)


def test_no_token_reads_a_layer_that_an_earlier_one_skipped(tiny_decoder):
    """So both policies write the same, and nothing is ever filled in late."""
    method = SkipDecode()
    model = method.fit(tiny_decoder(), make_text_task(), TokenRecipe(exit_steps=3, exit_batch_size=16))
    prompts = random_prompts(5)
    for knob in (1.5, 2.5):
        rule = method.rule(model, knob)
        exact, propagated = (generate(model, prompts, rule, max_new_tokens=8, kv=kv) for kv in ("exact", "propagate"))
        assert all(torch.equal(a, b) for a, b in zip(exact.tokens, propagated.tokens, strict=True))
        assert all((layers[1:] <= layers[:-1]).all() for layers in exact.exit_layers)
        assert not torch.cat(exact.late_layers + propagated.late_layers).any()
        assert len({tuple(layers[:2].tolist()) for layers in exact.exit_layers}) == 1, "a batch leaves together"
