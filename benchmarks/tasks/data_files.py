"""Read a user's table of texts and labels, a CSV, TSV, JSON lines or Parquet file, and find its columns."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.specs.schema import TABLES
from benchmarks.tasks.cells import decoded, equal_lines, plain_cells, quoted_cells
from consistentee.data.tasks import Split, Text
from consistentee.errors import UserError, reason_of, shown, unencodable, unknown_name
from consistentee.extras import check_extra

_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "gold")
_TEXTS = ("text", "sentence", "review", "document", "content", "body", "title", "utterance", "query", "question")
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"))


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold the text, or the two texts of a pair, and the label."""

    texts: tuple[str, ...]
    label: str | None

    def __str__(self) -> str:
        label = f", label from {self.label!r}" if self.label else ""
        return f"text from {' and '.join(map(repr, self.texts))}{label}"


def read_table(path: Path) -> pd.DataFrame:
    """Read a table, with every cell as text; ``-`` is CSV from standard input. Raises UserError that names the file."""
    piped = str(path) == "-"
    suffix = ".csv" if piped else path.suffix.lower()
    if not (piped or path.is_file()):
        raise UserError(f"no such file: {path}")
    if suffix not in TABLES:
        raise UserError(f"{path}: a table is one of {', '.join(TABLES)}")
    if suffix == ".parquet":
        check_extra("bench", str(path))
    try:
        table = _parse(path, suffix, sys.stdin.buffer.read() if piped else None)
    except UserError:
        raise
    except Exception as error:  # pandas and pyarrow have no common exception for damaged files
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    if table.empty:
        raise UserError(f"{path} holds no rows")
    return table


def _parse(path: Path, suffix: str, piped: bytes | None) -> pd.DataFrame:
    if suffix == ".parquet":
        return pd.read_parquet(path)
    if suffix not in (".csv", ".tsv"):
        return pd.read_json(path, lines=suffix != ".json", dtype=False, convert_dates=False)
    content = decoded(path, piped)
    lines = _unquoted(content) if suffix == ".tsv" else None
    lines = list(quoted_cells(content, path, suffix[1:])) if lines is None else lines
    header, *rows = [cells for _, cells in equal_lines((line for line in lines if line[1]), path)] or [[]]
    table = pd.DataFrame(rows, columns=header, dtype=object)
    return table.loc[:, ~table.columns.duplicated()]


def _unquoted(content: str) -> list[tuple[int, list[str]]] | None:
    """Return the cells of a TSV file in which quotes belong to the text, None if they may stand around cells.

    They belong to the text if every line has as many cells as the first, and some quote neither opens nor closes one.
    """
    lines = [line for line in plain_cells(content) if line[1] != [""]]
    with_quotes = [cell for _, cells in lines for cell in cells if '"' in cell]
    of_text = any(cell.count('"') % 2 or cell[0] + cell[-1] != '""' for cell in with_quotes)
    return lines if of_text and len({len(cells) for _, cells in lines}) == 1 else None


def find_columns(
    columns: Iterable[object],
    place: object,
    text: Sequence[str] = (),
    label: str | None = None,
    *,
    labelled: bool = True,
    say: tuple[str, str] = ("say it with --text (two for pairs)", "say it with --label"),
) -> Columns:
    """Return the columns that were named, or else the likely ones.

    Raises UserError for an unknown column, and if no column, or several, could be meant; ``say`` is what helps then.
    """
    names = [str(name) for name in columns]
    for name in [*text, *([label] if label else [])]:
        if name not in names:
            raise unknown_name(f"column of {place}", name, names)
    lower = {name.lower(): name for name in names}
    if label is None and labelled:
        label = next((lower[name] for name in _LABELS if name in lower), None)
        if label is None:
            raise UserError(f"{place}: which of {', '.join(names)} is the label? {say[1]}")
    if not text:
        rest = [name for name in names if name != label and (labelled or name.lower() not in _LABELS)]
        free = {name.lower() for name in names if name != label}
        pair = next((pair for pair in _PAIRS if free.issuperset(pair)), None)
        single = next((name for name in _TEXTS if name in free), None)
        if pair is not None:
            text = [lower[name] for name in pair]
        elif single is not None or len(rest) == 1:
            text = [lower[single] if single else rest[0]]
        else:
            raise UserError(f"{place}: which of {', '.join(names)} is the text? {say[0]}")
    if len(text) > 2:
        raise UserError("--text takes one column, or two for pairs")
    return Columns(tuple(text), label)


def texts_of(table: pd.DataFrame, columns: Columns, place: object) -> list[Text]:
    """Return the text, or the pair, of every row. Raises UserError for an empty one, by its row."""
    cells = [[_cell(value, place, row) for row, value in enumerate(table[name], start=1)] for name in columns.texts]
    return list(cells[0]) if len(cells) == 1 else list(zip(*cells, strict=True))


def _cell(value: Any, place: object, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: row {row} has no text, but {shown(value)}")
    if fault := unencodable(value):
        raise UserError(f"{place}: row {row} {fault}")
    return value


def labelled_rows(table: pd.DataFrame, columns: Columns, place: object, label_names: Sequence[str]) -> Split:
    """Return texts with the numbers of their labels, which stand all as names or all as numbers in the table.

    Raises UserError for a label that the model does not know, by its row.
    """
    known = {name: number for number, name in enumerate(label_names)}
    cells = [
        str(int(value)) if isinstance(value, int | float) and float(value).is_integer() else str(value).strip()
        for value in table[columns.label]
    ]
    if not set(cells) <= known.keys():
        numbers, lower = {str(number): number for number in range(len(label_names))}, [name.lower() for name in known]
        if set(cells) <= numbers.keys():
            known = numbers
        elif len(set(lower)) == len(lower):  # else case tells labels apart
            known, cells = dict(zip(lower, known.values(), strict=True)), [cell.lower() for cell in cells]
    for row, cell in enumerate(cells, start=1):
        if cell not in known:
            raise UserError(
                f"{place}: row {row} has label {shown(cell)}, which the model does not know; "
                f"it knows {', '.join(label_names[:20])}, and their numbers from 0"
            )
    return Split(str(place), texts_of(table, columns, place), [known[cell] for cell in cells])
