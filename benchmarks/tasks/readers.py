"""Read rows from TSV, CSV and JSON-lines files and from hub data sets. A faulty row is named by file and line."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks.spec import Column, Columns, Files
from consistentee.data import Text
from consistentee.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row as its source has it.

    Attributes:
        place: where it stands, for messages: ``file:line``.
        text: a sentence or a pair.
        label: the label's cell.
    """

    place: str
    text: Text
    label: str


def read_file(path: Path, files: Files) -> list[Row]:
    """Return the rows of one file. Raises UserError for a file without rows, and for a faulty row (file and line)."""
    content = _decode(path)
    if not content.strip():
        rows = []
    elif files.format == "jsonl":
        rows = [_row(place, cells, files) for place, cells in _json_cells(content, path)]
    else:
        lines = _quoted_cells(content, path, files.format) if files.quoted else _plain_cells(content)
        rows = list(_table_rows(lines, path, files))
    if not rows:
        raise UserError(f"{path} holds no rows, so the split is empty")
    return rows


def read_hub_split(dataset: Any, columns: Columns, place: str) -> list[Row]:
    """Return the rows of one split of a ``datasets`` data set; class numbers become class names."""
    wanted = [*columns.text_columns, columns.label]
    missing = [column for column in wanted if column not in dataset.column_names]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    names = getattr(dataset.features[columns.label], "names", None)
    rows = []
    for number, cells in enumerate(dataset.select_columns(wanted), start=1):
        label = cells[columns.label]
        if names is not None and label is not None:
            # The hub marks a label that is kept secret by -1.
            label = names[label] if 0 <= label < len(names) else None
        rows.append(_row(f"{place}:{number}", {**cells, columns.label: label}, columns))
    return rows


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _plain_cells(content: str) -> Iterator[tuple[int, list[str]]]:
    """Split at newlines and tabs and at nothing else: quotes and other separators of Unicode belong to the text."""
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r").split("\t")


def _quoted_cells(content: str, path: Path, table_format: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="," if table_format == "csv" else "\t", strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: malformed row ({error})") from error


def _json_cells(content: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        place = f"{path}:{number}"
        try:
            cells = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: not JSON ({error})") from error
        if not isinstance(cells, dict):
            raise UserError(f"{place}: a row must be a JSON object")
        yield place, cells


def _table_rows(lines: Iterable[tuple[int, list[str]]], path: Path, files: Files) -> Iterator[Row]:
    header: list[str] | None = None
    width: int | None = None
    for number, cells in lines:
        place = f"{path}:{number}"
        if width is None:
            width = len(cells)
            header = _header(cells, path, files) if files.header else None
            if header is not None:
                continue
        if len(cells) != width:
            raise UserError(f"{place}: {_count(len(cells), 'cell')}, but the first line has {width}")
        keys = header if header is not None else range(1, width + 1)
        yield _row(place, dict(zip(keys, cells, strict=True)), files)


def _header(cells: list[str], path: Path, columns: Columns) -> list[str]:
    for column in (*columns.text_columns, columns.label):
        if cells.count(str(column)) != 1:
            fault = "no column" if column not in cells else "more than one column"
            raise UserError(f"{path}:1: {fault} {column!r}; the header has {', '.join(cells)}")
    return cells


def _row(place: str, cells: Mapping[Any, Any], columns: Columns) -> Row:
    texts = [_text(place, cells, column) for column in columns.text_columns]
    return Row(place, texts[0] if len(texts) == 1 else (texts[0], texts[1]), _label(place, cells, columns.label))


def _text(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    text = cells.get(column)
    if text is None:
        raise UserError(f"{place}: no text in column {column!r}")
    if not isinstance(text, str):
        raise UserError(f"{place}: column {column!r} must hold text, got {text!r}")
    if not text.strip():
        raise UserError(f"{place}: empty text in column {column!r}")
    return text


def _label(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    label = cells.get(column)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{place}: missing label in column {column!r}")
    if isinstance(label, (dict, list)):
        raise UserError(f"{place}: the label in column {column!r} must be a text or a number, got {label!r}")
    return label.strip() if isinstance(label, str) else str(label)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
