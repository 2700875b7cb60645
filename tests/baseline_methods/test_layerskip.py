"""LayerSkip: the full model's text whatever drafts, and layer dropout where the backbone learns."""

from conftest import make_text_task

from baselines.layerskip import LayerSkip
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(exit_steps=15, exit_batch_size=32, exit_learning_rate=1e-2, backbone_steps=3)


def test_the_backbone_learns_only_where_the_recipe_lets_it(tiny_decoder):
    task = make_text_task()
    fingerprints = [
        LayerSkip(dropout=dropout).fit(tiny_decoder(), task, TokenRecipe(trains=trains, exit_steps=1, backbone_steps=2))
        for trains, dropout in (("exits", 0.1), ("all", 0.0), ("all", 0.5))
    ]
    frozen, plain, dropped = (model.backbone_fingerprint() for model in fingerprints)
    assert frozen == tiny_decoder().backbone_fingerprint()
    assert len({frozen, plain, dropped}) == 3
