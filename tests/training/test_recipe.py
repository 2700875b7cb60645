"""Recipes: declared once, for the library, for suites and for the command line."""

import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
from pydantic import ValidationError

from consistentee.errors import UserError
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
@pytest.mark.parametrize(
    ("changes", "named"),
    [({"max_row": 3}, "max_row"), ({"max_rows": 0}, "max_rows"), ({"weight_decay": -1}, "decay")],
)
def test_unknown_fields_and_values_out_of_range_are_refused(settings, recipe, changes, named):
    for declared, error in ((settings, ValidationError), (recipe, UserError)):  # suites collect the faults of settings
        with pytest.raises(error, match=named):
            declared(**changes)
        with pytest.raises(error, match=named):
            replace(declared(), **changes)


@KINDS
def test_every_field_of_a_suite_is_explained(settings, recipe):
    assert all(field.description for field in settings.__pydantic_fields__.values())


def test_recipes_do_not_load_torch():
    code = (
        "import sys, consistentee; consistentee.TokenRecipe(), consistentee.Recipe(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
