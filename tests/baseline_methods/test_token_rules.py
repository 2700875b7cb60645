"""Rules of decoding by hand: CALM, thresholds by depth, schedules, and exits that know nothing."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from baselines.calm import DecayingThresholdRule, agreement
from baselines.free import FREE
from baselines.lite import LITE, shifted_thresholds
from baselines.references import RandomRule, TokenStatic, survival
from baselines.skipdecode import SkipDecode, falling_schedule
from benchmarks.testing.tiny import make_text_task, random_prompts
from consistentee import TokenRecipe, UserError, generate, get_method
from consistentee.signals import margin

RECIPE = TokenRecipe(exit_steps=3, exit_batch_size=16)
LAYERS = 12
SIX = (6, 12, 18, 24, 30)


def test_thresholds_lie_on_a_line_between_those_of_the_paper_and_are_shifted_by_log_odds():
    table = ((0.25, 0.9), (0.5, 0.8), (0.75, 0.5))
    found = shifted_thresholds(table, (1, 2, 3, 4, 5, 6, 7, 8), 0.0)
    assert list(found) == [1, 2, 3, 4, 5, 6, 7]
    assert list(found.values()) == pytest.approx([0.9, 0.9, 0.85, 0.8, 0.65, 0.5, 0.5])
    thresholds = torch.tensor(list(shifted_thresholds(((0.25, 0.9), (0.75, 0.6)), (1, 3, 4), 1.5).values()))
    torch.testing.assert_close(thresholds.logit(), torch.tensor([0.9, 0.6]).logit() + 1.5)


def test_lite_has_the_stage_of_all_methods_that_ask_for_equal_weights(tiny_decoder, tmp_path):
    others = {"exit_weights": "squared depth", "layer_dropout": 0.5, "taught_share": 0.5}  # without effect here
    recipe = replace(RECIPE, trains="all", backbone_steps=2, store=tmp_path)
    for method, changes in ((LITE(), others), (TokenStatic(), {"exit_weights": "equal"})):
        method.fit(tiny_decoder(adapter="shared"), make_text_task(), replace(recipe, **changes))
    assert len(list(tmp_path.glob("backbone-all-*.safetensors"))) == 1


def test_the_shallow_exit_of_free_is_near_a_quarter_of_the_depth(tiny_decoder):
    assert FREE().shallow_exit(tiny_decoder()) == 1
    assert FREE().shallow_exit(tiny_decoder(exit_layers=(2, 3))) == 2
    assert FREE(shallow_layer=3).shallow_exit(tiny_decoder()) == 3
    with pytest.raises(UserError, match="no exit at layer 3; its exit layers are 2, 4"):
        FREE(shallow_layer=3).fit(tiny_decoder(exit_layers=(2,)), make_text_task(), RECIPE)


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
def test_schedules_of_skipdecode_by_hand(mean, expected):
    assert falling_schedule(SIX, mean, 6) == expected


@given(st.floats(6, 30), st.floats(6, 30), st.integers(1, 80))
def test_schedules_of_skipdecode_fall_and_are_ordered(first, second, tokens):
    small, large = (falling_schedule(SIX, mean, tokens) for mean in sorted((first, second)))
    assert small == sorted(small, reverse=True)
    assert all(a <= b for a, b in zip(small, large, strict=True))
    decoded = falling_schedule(SIX, first, tokens + 1)[1:]
    assert sum(decoded) == pytest.approx(first * tokens, abs=0.5 * (SIX[-1] - SIX[0]) + 1e-6)


def test_skipdecode_reads_no_layer_that_an_earlier_token_skipped(tiny_decoder):
    """Both policies write the same, and nothing is filled in late."""
    method = SkipDecode()
    model = method.fit(tiny_decoder(), make_text_task(), RECIPE)
    prompts = random_prompts(5)
    for knob in (1.5, 2.5):
        rule = method.rule(model, knob)
        exact, propagated = (generate(model, prompts, rule, max_new_tokens=8, kv=kv) for kv in ("exact", "propagate"))
        assert all(torch.equal(a, b) for a, b in zip(exact.tokens, propagated.tokens, strict=True))
        assert all((layers[1:] <= layers[:-1]).all() for layers in exact.exit_layers)
        assert not torch.cat(exact.late_layers + propagated.late_layers).any()
        assert len({tuple(layers[:2].tolist()) for layers in exact.exit_layers}) == 1, "a batch leaves together"


@pytest.mark.parametrize("mean", [1.0, 3.1, 6.5, 9.0, 12.0])
@pytest.mark.parametrize("seed", [3, 2**40 + 7])
def test_random_exits_have_the_given_mean(mean, seed):
    """The mean is the sum over layers of the chance of running past the layer before."""
    chances = {layer: survival(layer, LAYERS, mean) for layer in range(1, LAYERS)}
    assert 1 + sum(chances.values()) == pytest.approx(mean)
    keys, rule = torch.arange(20_000) * 12_345, RandomRule(mean, seed)
    for layer, chance in chances.items():
        stays = ~rule.should_exit(SimpleNamespace(row_keys=keys, layer=layer, num_layers=LAYERS), {})
        assert float(stays.double().mean()) == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize(
    ("threshold", "tau", "step", "expected"),
    [
        (0.5, 4.0, 0, 0.55),
        (0.5, 4.0, 10, 0.45 + 0.1 * math.exp(-1)),
        (0.5, 0.0, 40, 0.55),
        (1.0, 4.0, 0, 1.0),
        (-0.2, 4.0, 0, 0.0),
        (1.2, 4.0, 1000, 1.0),
    ],
)
def test_falling_threshold_of_calm_by_hand(threshold, tau, step, expected):
    assert DecayingThresholdRule(margin, threshold, tau, tokens=40).threshold_at(step) == pytest.approx(expected)


def test_the_threshold_of_calm_falls_over_the_length_of_trained_texts(tiny_decoder):
    model = tiny_decoder()
    method = get_method("calm-tokens-softmax")
    assert method.rule(model, 0.5).tokens == 64
    method.fit(model, make_text_task(), RECIPE)
    assert method.rule(model, 0.5).tokens == make_text_task().max_new_tokens
    assert replace(method, horizon=20).rule(model, 0.5).tokens == 20


def test_agreement_of_exits_by_hand():
    named = torch.tensor([[5, 7, 7], [7, 5, 7], [1, 2, 3]])
    assert agreement(named).tolist() == [[0, 1], [1, 0], [0, 0]]
