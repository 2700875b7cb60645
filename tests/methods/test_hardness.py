"""The Memorized Layer."""

import torch
from conftest import make_task
from hypothesis import given
from hypothesis import strategies as st

from consistentee.methods.hardness import cross_fitted_memorized_layer, memorized_layer
from consistentee.training.recipe import Recipe
from consistentee.training.encoder import training_source


def test_by_hand():
    correct = torch.tensor(
        [[True, True, True], [False, True, True], [True, False, True], [True, True, False], [False, False, False]]
    )
    assert memorized_layer(correct).tolist() == [1, 2, 3, 3, 3]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=8))
def test_definition(rows):
    """The smallest l such that layers l..L are all right; L if the last one is wrong."""
    for row, found in zip(rows, memorized_layer(torch.tensor(rows)).tolist(), strict=True):
        candidates = [layer for layer in range(1, 6) if all(row[layer - 1 :])]
        assert found == (min(candidates) if candidates else 5)


def test_cross_fitting_judges_every_row_and_leaves_the_model_alone(tiny_model):
    model = tiny_model("bert")
    before = model.clone_weights()
    recipe = Recipe(epochs=1, batch_size=16, max_length=32, max_rows=30)
    layers = cross_fitted_memorized_layer(model, training_source(model, make_task(), recipe), recipe, folds=3)
    assert layers.shape == (30,)
    assert layers.min() >= 1
    assert layers.max() <= model.num_layers
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
