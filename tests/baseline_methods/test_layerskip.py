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

RECIPE = TokenRecipe(exit_steps=15, exit_batch_size=32, exit_learning_rate=1e-2, backbone_steps=3)


def test_text_is_the_full_models_at_every_draft_layer(tiny_decoder):
    model = LayerSkip().fit(tiny_decoder(), make_text_task(), RECIPE)
    prompts = random_prompts(3, seed=3)
    full = generate(model, prompts, NeverExit(), max_new_tokens=8)
    for knob in LayerSkip().knob_values(model):
        options = {"max_new_tokens": 8, "sampling": None, "sort_by_length": False, "batch_size": 2}
        written = LayerSkip(draft_tokens=3).generate(model, prompts, knob, **options)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(written.tokens, full.tokens, strict=True))
        assert isinstance(written, SpeculativeGenerations) == (knob < 4)
    with pytest.raises(UserError, match="cannot sample"):
        LayerSkip().generate(model, ["ba"], 2.0, sampling=Sampling())


def test_the_backbone_learns_only_where_the_recipe_lets_it(tiny_decoder):
    task = make_text_task()
    fingerprints = [
        LayerSkip(dropout=dropout).fit(tiny_decoder(), task, TokenRecipe(trains=trains, exit_steps=1, backbone_steps=2))
        for trains, dropout in (("exits", 0.1), ("all", 0.0), ("all", 0.5))
    ]
    frozen, plain, dropped = (model.backbone_fingerprint() for model in fingerprints)
    assert frozen == tiny_decoder().backbone_fingerprint()
    assert len({frozen, plain, dropped}) == 3
