"""LITE and SoFT: thresholds that fall with depth, one knob for all of them, and one stage for both."""

from dataclasses import replace

import pytest
import torch
from conftest import make_text_task

from baselines.lite import LITE
from baselines.references import TokenStatic
from baselines.soft import SoFT
from consistentee.rules.schedules import DepthThresholdRule, shifted_thresholds
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import replay
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(trains="all", backbone_steps=2, exit_steps=2, exit_batch_size=16)
ROWS = [([2, 7, 9], [30, 31, *range(20, 60)]), ([2, 8], [40, *range(30, 50)])]
METHODS, REFERENCES = [LITE(), SoFT()], [TokenStatic()]


def test_thresholds_lie_on_a_line_between_those_of_the_paper():
    table = ((0.25, 0.9), (0.5, 0.8), (0.75, 0.5))
    found = shifted_thresholds(table, (1, 2, 3, 4, 5, 6, 7, 8), 0.0)
    assert list(found) == [1, 2, 3, 4, 5, 6, 7]
    assert list(found.values()) == pytest.approx([0.9, 0.9, 0.85, 0.8, 0.65, 0.5, 0.5])


def test_a_shift_is_one_of_log_odds():
    thresholds = torch.tensor(list(shifted_thresholds(((0.25, 0.9), (0.75, 0.6)), (1, 3, 4), 1.5).values()))
    torch.testing.assert_close(thresholds.logit(), torch.tensor([0.9, 0.6]).logit() + 1.5)


def test_a_token_leaves_where_its_probability_reaches_the_threshold_of_the_layer(tiny_decoder):
    model = tiny_decoder(exit_layers=(1, 3))
    trace = record_tokens(model, ROWS)
    tokens = torch.arange(len(trace))
    top = torch.stack([model.logits(layer, trace.states(i, tokens)) for i, layer in enumerate((1, 3))])
    top = top.softmax(-1).amax(-1)
    thresholds = {1: top[0].quantile(0.7).item(), 3: top[1].quantile(0.4).item()}
    expected = torch.where(top[1] >= thresholds[3], 3, 4).where(top[0] < thresholds[1], 1)
    expected[trace.step == 0] = 4
    found = replay(DepthThresholdRule(thresholds), trace)
    assert set(found.tolist()) == {1, 3, 4}
    assert (found == expected).double().mean() > 0.98, "up to a token on the threshold"


def test_both_have_the_stage_of_all_methods_that_ask_for_equal_weights(tiny_decoder, tmp_path):
    weights = []
    for method in (*METHODS, *REFERENCES):
        others = {"exit_weights": "squared depth", "layer_dropout": 0.5, "taught_share": 0.5}  # without effect here
        recipe = replace(RECIPE, store=tmp_path, **({"exit_weights": "equal"} if method in REFERENCES else others))
        model = method.fit(tiny_decoder(adapter="shared"), make_text_task(), recipe)
        weights.append(model.backbone_fingerprint())
    assert len(set(weights)) == 1
    assert len(list(tmp_path.glob("backbone-all-*.safetensors"))) == 1
