"""Recipes: declared once, for the library, for suites and for the command line."""

from dataclasses import asdict, fields

import pytest

from consistentee.training.recipe import BaseSettings, OneRun, Recipe, RecipeSettings, TokenRecipe, TokenRecipeSettings

KINDS = pytest.mark.parametrize(
    ("settings", "recipe"), [(RecipeSettings, Recipe), (TokenRecipeSettings, TokenRecipe)], ids=["instances", "tokens"]
)


@KINDS
def test_a_recipe_is_what_a_suite_sets_and_what_belongs_to_one_run(settings, recipe, tmp_path):
    of_one_run = {field.name for field in fields(OneRun)}
    assert {"seed", "store", "keep_stages"} <= of_one_run
    names = {field.name for field in fields(settings)}
    assert {field.name for field in fields(recipe)} == names | of_one_run
    assert {field.name for field in fields(BaseSettings)} < names
    assert not names & of_one_run
    assert settings().to_recipe(seed=0) == recipe()
    few = settings(max_rows=7).to_recipe(3, tmp_path, keep_stages=True)
    assert few == recipe(max_rows=7, seed=3, store=tmp_path, keep_stages=True)
    assert asdict(settings(max_rows=7)).items() <= asdict(few).items()


@KINDS
def test_every_field_of_a_suite_is_explained(settings, recipe):
    assert all(field.description for field in settings.__pydantic_fields__.values())
