"""Rows as their sources have them, and the cells that they are made of. A faulty cell is named by file and line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.tasks.base_spec import Column
from consistentee.data.instances import Text
from consistentee.errors import UserError, shown, unencodable


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
        place: where it stands, for messages: ``file:line``.
        fields: what goes into the prompt, by the names that templates use; "" where the cell is empty.
        response: the answer; "" where the cell is empty, or where the task has no such column.
    """

    place: str
    fields: dict[str, str]
    response: str


def sentence_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a text, as it is. Raises UserError for what is missing, empty or no text."""
    text = cells.get(column)
    if text is None:
        raise UserError(f"{place}: no text in column {column!r}")
    if not isinstance(text, str):
        raise UserError(f"{place}: column {column!r} must hold text, got {shown(text)}")
    if not text.strip():
        raise UserError(f"{place}: empty text in column {column!r}")
    return _encodable(place, text, column)


def label_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a label without the spaces around it. Raises UserError for what is missing, empty or nested."""
    label = cells.get(column)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{place}: missing label in column {column!r}")
    if isinstance(label, (dict, list)):
        raise UserError(f"{place}: the label in column {column!r} must be a text or a number, got {shown(label)}")
    return _encodable(place, str(label).strip(), column)


def optional_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a text, "" for null. Raises UserError for what is missing, and for what is neither text nor number."""
    if column not in cells:
        raise UserError(f"{place}: no column {column!r}; it has {', '.join(map(str, cells))}")
    text = cells[column]
    if text is None:
        return ""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise UserError(f"{place}: column {column!r} must hold text, got {shown(text)}")
    return _encodable(place, str(text), column)


def _encodable(place: str, text: str, column: Column) -> str:
    if fault := unencodable(text):
        raise UserError(f"{place}: the text in column {column!r} {fault}")
    return text
