"""LayerSkip: the full model's text whatever drafts, and layer dropout where the backbone learns."""

import pytest
import torch
from conftest import make_text_task, random_prompts

from baselines.layerskip import LayerSkip
from consistentee.engine.generate import generate
from consistentee.engine.sampling import Sampling
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.errors import UserError
from consistentee.rules.exit_rule import NeverExit
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(exit_steps=40, exit_batch_size=32, exit_learning_rate=1e-2, backbone_steps=3)


@pytest.fixture(scope="module")
def model(tiny_decoder):
    return LayerSkip().fit(tiny_decoder(), make_text_task(), RECIPE)


def test_text_is_the_full_models_at_every_draft_layer(model):
    prompts = random_prompts(6, seed=3)
    full = generate(model, prompts, NeverExit(), max_new_tokens=12)
    for knob in LayerSkip().knob_values(model):
        written = LayerSkip(draft_tokens=3).generate(model, prompts, knob, max_new_tokens=12)
        assert written.texts == full.texts
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(written.tokens, full.tokens, strict=True))
        if knob < 4:
            assert isinstance(written, SpeculativeGenerations)
            assert sum(written.drafted) > 0


def test_full_depth_drafts_nothing(model):
    assert not isinstance(LayerSkip().generate(model, ["ba"], 4.0, max_new_tokens=3), SpeculativeGenerations)
    with pytest.raises(UserError, match="draft layer"):
        LayerSkip().generate(model, ["ba"], 5.0)


def test_drafts_are_greedy(model):
    drawn = LayerSkip().generate(model, ["ba"], 4.0, max_new_tokens=3, sampling=Sampling(seed=1))
    assert len(drawn.tokens[0]) > 0
    with pytest.raises(UserError, match="layerskip verifies greedy drafts and cannot sample; draft layer 2"):
        LayerSkip().generate(model, ["ba"], 2.0, sampling=Sampling())
    options = {"max_new_tokens": 3, "sampling": None, "sort_by_length": False, "batch_size": 2}
    assert isinstance(LayerSkip().generate(model, ["ba"], 2.0, **options), SpeculativeGenerations)


def test_the_backbone_learns_only_where_the_recipe_lets_it(tiny_decoder):
    task = make_text_task()
    fingerprints = [
        LayerSkip(dropout=dropout).fit(tiny_decoder(), task, TokenRecipe(trains=trains, exit_steps=1, backbone_steps=2))
        for trains, dropout in (("exits", 0.1), ("all", 0.0), ("all", 0.5))
    ]
    frozen, plain, dropped = (model.backbone_fingerprint() for model in fingerprints)
    assert frozen == tiny_decoder().backbone_fingerprint()
    assert len({frozen, plain, dropped}) == 3


def test_settings_share_no_stored_stage(tiny_decoder, tmp_path):
    task = make_text_task()

    def trained(dropout):
        recipe = TokenRecipe(trains="all", exit_steps=1, backbone_steps=2, store=tmp_path)
        return LayerSkip(dropout=dropout).fit(tiny_decoder(), task, recipe).backbone_fingerprint()

    assert trained(0.0) == trained(0.0) != trained(0.9)
