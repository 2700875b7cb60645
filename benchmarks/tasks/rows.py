"""Rows as their sources have them, the cells they are made of, and the templates that turn fields into prompts.

A faulty cell is named by file and line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any

from pydantic import Field

from consistentee.data.instances import Text
from consistentee.data.prompts import Prompt
from consistentee.errors import UserError, shown, unencodable

_BODY = "\0body\0"
"""Marks the place of a prompt's body while the other fields are filled in."""

Column = str | Annotated[int, Field(ge=1)]
"""A column by its name, or by its place (the first is 1) where the file has no header."""


@dataclass(frozen=True)
class Row:
    """A row of a classification or regression.

    Attributes:
        place: where it stands, for messages: ``file:line``.
        text: a sentence or a pair.
        label: the label's cell.
    """

    place: str
    text: Text
    label: str


@dataclass(frozen=True)
class TextRow:
    """A row whose answer is a text.

    Attributes:
        fields: what goes into the prompt, by the names that templates use; "" where the cell is empty.
        response: the answer; "" where the cell is empty, or where the task has no such column.
    """

    fields: dict[str, str]
    response: str


def text_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a cell as text, "" for null. Raises UserError for what is missing, and for what is no text or number."""
    if column not in cells:
        raise UserError(f"{place}: no column {column!r}; it has {', '.join(map(str, cells))}")
    value = cells[column]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise UserError(f"{place}: column {column!r} must hold text, got {shown(value)}")
    if fault := unencodable(str(value)):
        raise UserError(f"{place}: the text in column {column!r} {fault}")
    return str(value)


def filled_cell(place: str, cells: Mapping[Any, Any], column: Column, fault: str) -> str:
    """Return a cell as :func:`text_cell` does. Raises UserError, with ``fault``, for one that is empty, too."""
    text = text_cell(place, cells, column)
    if not text.strip():
        raise UserError(f"{place}: {fault} in column {column!r}")
    return text


@dataclass(frozen=True)
class Template:
    """Text with places for fields, ``{article}``; a brace that is text is written twice.

    Raises ValueError for a faulty one: without a field, with one twice, with formats.
    """

    text: str

    def __post_init__(self) -> None:
        for _, field, layout, conversion in Formatter().parse(self.text):
            if field is not None and (not field.isidentifier() or layout or conversion):
                raise ValueError(f"{{{field}}} is not the name of a field; write a brace that is text twice")
        if not self.fields:
            raise ValueError("a template needs a field, as in {question}")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"a field stands twice in {self.text!r}")

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(field for _, field, _, _ in Formatter().parse(self.text) if field is not None)

    def prompt(self, values: Mapping[str, str], cut_field: str | None = None) -> Prompt:
        """Return the prompt made of ``values``, all that the template needs.

        What may be cut of it is ``cut_field``, or the last field where the template has no such field.
        """
        body = cut_field if cut_field in self.fields else self.fields[-1]
        before, _, after = self.text.format(**{**values, body: _BODY}).partition(_BODY)
        return Prompt(before, values[body], after)
