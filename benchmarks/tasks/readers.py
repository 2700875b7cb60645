"""Read rows from TSV, CSV and JSON files and from hub data sets. A faulty row is named by file and line."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tasks.specs import FileLayout, RowColumns
from consistentee.errors import UserError

Cells = tuple[str, dict[Any, Any]]
"""The place of a row, for messages, and its cells by column."""


def read_file(path: Path, files: FileLayout) -> list[Any]:
    """Return the rows of one file, as ``files.row`` makes them.

    Raises UserError for a file without rows, and for a faulty row (file and line).
    """
    content = _decode(path)
    if files.format == "jsonl":
        places = _json_lines(content, path)
    elif files.format == "json":
        places = _json_list(content, path)
    elif files.quoted:
        places = _table_cells(_quoted_cells(content, path, files.format), path, files)
    else:
        places = _table_cells(_plain_cells(content), path, files)
    rows = [files.row(place, cells) for place, cells in places] if content.strip() else []
    if not rows:
        raise UserError(f"{path} holds no rows, so the split is empty")
    return rows


def read_hub_split(dataset: Any, columns: RowColumns, place: str) -> list[Any]:
    """Return the rows of one split of a ``datasets`` data set, as ``columns.row`` makes them.

    Class numbers become class names first; the hub marks a label that is kept secret by -1, which becomes None.
    """
    wanted = columns.columns
    missing = [column for column in wanted if column not in dataset.column_names]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    class_names = {
        column: names for column in wanted if (names := getattr(dataset.features[column], "names", None)) is not None
    }
    rows = []
    for number, cells in enumerate(dataset.select_columns(wanted), start=1):
        for column, names in class_names.items():
            label = cells[column]
            cells[column] = names[label] if label is not None and 0 <= label < len(names) else None
        rows.append(columns.row(f"{place}:{number}", cells))
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
    csv.field_size_limit(2**31 - 1)  # by default 131,072 characters, for the whole process
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="," if table_format == "csv" else "\t", strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: malformed row ({error})") from error


def _json_lines(content: str, path: Path) -> Iterator[Cells]:
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        place = f"{path}:{number}"
        yield place, _object(place, _parsed(line, place))


def _json_list(content: str, path: Path) -> Iterator[Cells]:
    rows = _parsed(content, str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a JSON list")
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        yield place, _object(place, row)


def _parsed(content: str, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # names line and column
        raise UserError(f"{place}: not JSON ({error})") from error


def _object(place: str, cells: Any) -> dict[str, Any]:
    if not isinstance(cells, dict):
        raise UserError(f"{place}: a row must be a JSON object")
    return cells


def _table_cells(lines: Iterable[tuple[int, list[str]]], path: Path, files: FileLayout) -> Iterator[Cells]:
    keys: Sequence[str | int] = []
    for number, cells in lines:
        if not keys and files.header:
            keys = _header(cells, path, files)
            continue
        keys = keys or range(1, len(cells) + 1)
        place = f"{path}:{number}"
        if len(cells) != len(keys):
            raise UserError(f"{place}: {len(cells)} cell{'s' * (len(cells) != 1)}, but the first line has {len(keys)}")
        yield place, dict(zip(keys, cells, strict=True))


def _header(cells: list[str], path: Path, columns: RowColumns) -> list[str]:
    for column in columns.columns:
        if cells.count(str(column)) != 1:
            fault = "no column" if column not in cells else "more than one column"
            raise UserError(f"{path}:1: {fault} {column!r}; the header has {', '.join(cells)}")
    return cells
