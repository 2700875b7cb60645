"""Rows as their sources have them, and the cells that they are made of. A faulty cell is named by file and line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.tasks.base_spec import Column
from consistentee.data import Text
from consistentee.errors import UserError


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


def sentence_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a text, as it is. Raises UserError for what is missing, empty or no text."""
    text = cells.get(column)
    if text is None:
        raise UserError(f"{place}: no text in column {column!r}")
    if not isinstance(text, str):
        raise UserError(f"{place}: column {column!r} must hold text, got {text!r}")
    if not text.strip():
        raise UserError(f"{place}: empty text in column {column!r}")
    return text


def label_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a label without the spaces around it. Raises UserError for what is missing, empty or nested."""
    label = cells.get(column)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{place}: missing label in column {column!r}")
    if isinstance(label, (dict, list)):
        raise UserError(f"{place}: the label in column {column!r} must be a text or a number, got {label!r}")
    return label.strip() if isinstance(label, str) else str(label)
