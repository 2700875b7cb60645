"""Recipes: declared once, for the library, for suites and for the command line."""

import pytest

from consistentee.training.recipe import Recipe, RecipeSettings, TokenRecipe, TokenRecipeSettings


@pytest.mark.parametrize(("settings", "recipe"), [(RecipeSettings, Recipe), (TokenRecipeSettings, TokenRecipe)])
def test_a_recipe_is_what_a_suite_sets_and_what_belongs_to_one_run(settings, recipe, tmp_path):
    assert settings().to_recipe(seed=0) == recipe()
    few = settings(max_rows=7).to_recipe(3, tmp_path, keep_stages=True)
    assert few == recipe(max_rows=7, seed=3, store=tmp_path, keep_stages=True)
    assert all(field.description for field in settings.__pydantic_fields__.values()), "every setting is explained"
