"""The fields of ``train --set``: read from key=value pairs, and taught by ``--help``, as recipes declare them."""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from rich.table import Table

from benchmarks.yaml_files import validation_sentence
from consistentee.errors import UserError
from consistentee.training.recipe import BaseSettings, RecipeSettings, TokenRecipeSettings


def checked_settings(declared: type[BaseSettings], values: Mapping[str, Any]) -> BaseSettings:
    """Return settings with some values. Raises UserError for an unknown field, and for a value out of its range."""
    try:
        return declared(**values)
    except ValidationError as error:
        raise UserError(f"--set {validation_sentence(error, declared)}") from error


def explained_settings() -> Table:
    """Return a table for the terminal: all fields of either kind of task, with their defaults."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, declared in (("labels", RecipeSettings), ("texts", TokenRecipeSettings)):
        assert is_pydantic_dataclass(declared)
        table.add_row(f"Fields of --set, tasks of {title}:")
        own_first = sorted(declared.__pydantic_fields__.items(), key=lambda item: hasattr(BaseSettings, item[0]))
        for name, field in own_first:
            table.add_row(f" {name}={_usual(field)}", field.description)
        table.add_row()
    return table


def _usual(field: FieldInfo) -> str:
    """Return a field's default as it is typed, followed by the other choices, if it is a choice of names."""
    if get_origin(field.annotation) is Literal:
        return "|".join([field.default, *(choice for choice in get_args(field.annotation) if choice != field.default)])
    if field.default is None:
        return "null"
    return str(field.default).lower() if isinstance(field.default, bool) else f"{field.default:g}"
