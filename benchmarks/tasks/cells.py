"""The cells of CSV and TSV files, line by line."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from consistentee.errors import UserError


def decoded(path: Path, content: bytes | None = None) -> str:
    """Return the text of a file, of which ``content`` was read. Raises UserError that names file and line."""
    try:
        content = path.read_bytes() if content is None else content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason} at byte {error.start})") from error


def plain_cells(content: str) -> Iterator[tuple[int, list[str]]]:
    """Split at newlines and tabs and at nothing else: quotes and other separators of Unicode belong to the text."""
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r").split("\t")


def quoted_cells(content: str, path: Path, table_format: str) -> Iterator[tuple[int, list[str]]]:
    """Read cells that may be in quotes, with separators and newlines inside. Raises UserError for a malformed row."""
    csv.field_size_limit(2**31 - 1)  # by default 131,072 characters, for the whole process
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="," if table_format == "csv" else "\t", strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: malformed row ({error})") from error


def equal_lines(lines: Iterable[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Pass on lines of cells. Raises UserError for one that has not as many cells as the first."""
    first = None
    for number, cells in lines:
        first = len(cells) if first is None else first
        if len(cells) != first:
            some_cells = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
            raise UserError(f"{path}:{number}: {some_cells}, but the first line has {first}")
        yield number, cells
