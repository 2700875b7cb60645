"""One table, and its rendering to terminal, Markdown, CSV and LaTeX."""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import yaml

from benchmarks.analysis.frames import role_of
from benchmarks.store.hashes import write_text
from benchmarks.terminal import add_columns, add_row, plain_table, plain_text
from consistentee.errors import unknown_name

if TYPE_CHECKING:
    from rich.console import Group

MISSING = "n/a"
MOST_LINES = 100
"""Lines of ``table.md``, a page that people read."""
OWN = " •"
MARKS = {
    OWN.strip(): "•: of this run; the others are published.",
    "†": "†: even the cheapest knob costs more than the budget.",
    "‡": "‡: even the best knob costs less; it is shown.",
}
"""Marks of cells, which are explained where they stand."""
INTERVALS = "95% paired bootstrap intervals over rows within tasks, and over seeds if there are several"
INTERVALS_NOTE = f"In brackets: {INTERVALS}."
TableFormat = Literal["md", "csv", "latex"]
Width = Literal["column", "page"]
"""Where a LaTeX table stands: in a column of a paper of two columns, or across its page."""

METRIC_NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@cache
def _names() -> dict[str, str]:
    path = Path(__file__).parent / "templates" / "display_names.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def display_name(label: str) -> str:
    """Return the name of a label in print: ``calm-softmax`` is ``CALM (softmax)``."""
    known = label.removeprefix("token-") if role_of(label) != label else label
    stem = max((name for name in _names() if known == name or known.startswith(f"{name}-")), key=len, default=None)
    if stem is None:
        return label
    rest = known.removeprefix(stem).strip("-").replace("-", " ")
    return f"{_names()[stem]} ({rest})" if rest else _names()[stem]


def over_or_under(found: pd.DataFrame) -> pd.Series:
    """Return the marks of lines that cost more or less than the budget."""
    return found["over"].map({True: "†"}).fillna("") + found["under"].map({True: "‡"}).fillna("")


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the columns of the frame with its value, its interval and what is written behind it.

    ``form`` is the format of numbers, empty for words, which are set to the left; the ``best`` number is the largest;
    ``note`` is what a reader of this column must know. ``fits`` is the narrowest LaTeX table that shows the column
    unasked, and ``interval`` the narrowest that shows its interval, too.
    """

    heading: str
    value: str = ""
    form: str = ""
    low: str = ""
    high: str = ""
    mark: str = ""
    best: bool = False
    note: str = ""
    fits: Width | None = "column"
    interval: Width = "page"

    @property
    def source(self) -> str:
        return self.value or self.heading

    def text(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.source)
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return MISSING
        words = f"{value:{self.form}}" if self.form else str(value)
        if self.form and float(words.rstrip("%x")) == 0:
            words = words.replace("-", "+" if "+" in self.form else "")
        words += str(row[self.mark]) if self.mark else ""
        low, high = (row.get(name, np.nan) if name else np.nan for name in (self.low, self.high))
        return words if np.isnan(low) else f"{words} [{low:{self.form}}, {high:{self.form}}]"


@dataclass(frozen=True)
class Table:
    """A table: numbers, how they are written, and what a reader must know.

    ``name`` is that of its label in LaTeX; labels in a column ``method`` have display names there; ``notes`` are of
    the whole table, see :attr:`all_notes`; ``left_out`` is one that no paper needs; lines with the same value of
    ``blocks``, a column of the frame, form a block with a best number of its own.
    """

    title: str
    name: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    notes: Sequence[str] = ()
    left_out: str = ""
    blocks: str = ""

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The texts, by heading; columns of which nothing is known are left out."""
        rows = self.frame.to_dict("records")
        found = {column.heading: [column.text(row) for row in rows] for column in self.columns}
        return pd.DataFrame({name: texts for name, texts in found.items() if set(texts) - {MISSING} or not rows})

    @property
    def all_notes(self) -> list[str]:
        """The notes of the table, and in the last line those of its columns and marks."""
        of_columns = dict.fromkeys(column.note for column in self.columns if column.heading in self.cells)
        letters = set("".join(self.cells.to_numpy().ravel()))
        marks = [text for mark, text in MARKS.items() if mark in letters]
        return list(filter(None, [*self.notes, self.left_out, " ".join(filter(None, [*of_columns, *marks]))]))

    @property
    def numbers(self) -> pd.DataFrame:
        """The columns of the frame that are shown: values, bounds of intervals and marks."""
        names = [name for c in self.columns if c.heading in self.cells for name in (c.source, c.low, c.high, c.mark)]
        return self.frame[[name for name in dict.fromkeys(names) if name in self.frame]]

    def only(self, headings: Sequence[str]) -> "Table":
        """Return the table with its first column and those of ``headings``, in this order, at any width.

        Raises UserError for an unknown one.
        """
        known = {column.heading: column for column in self.columns if column.heading in self.cells}
        if unknown := [heading for heading in headings if heading not in known]:
            raise unknown_name(f"column of the table {self.name}", unknown[0], known)
        chosen = [known[heading] for heading in dict.fromkeys([self.columns[0].heading, *headings])]
        return replace(self, columns=[replace(column, fits="column", interval="column") for column in chosen])

    def narrowed(self, width: Width) -> "Table":
        """Return the table with the columns and intervals that fit a LaTeX table of this width."""
        fitting = ("column",) if width == "column" else ("column", "page")
        return replace(
            self,
            columns=[
                column if column.interval in fitting or not column.low else replace(column, low="", high="", note="")
                for column in self.columns
                if column.fits in fitting
            ],
        )

    def for_a_paper(self) -> "Table":
        """Return the table with methods by their display names, without what only a reader of all results needs."""
        named = {name: self.frame[name].map(display_name) for name in {"method"} & set(self.frame)}
        columns = [replace(column, mark="") if column.source in named else column for column in self.columns]
        title = re.sub(r"(?<=against )\S+", lambda found: display_name(found[0]), self.title)
        return replace(self, title=title, frame=self.frame.assign(**named), columns=columns, left_out="")

    @property
    def words(self) -> set[str]:
        """Headings of the columns of words."""
        return {column.heading for column in self.columns if not column.form}

    def bold(self, heading: str) -> list[bool]:
        """Return which rows are best in a column, as it is printed; in a block of one row, none is."""
        column = next(column for column in self.columns if column.heading == heading)
        if not column.best:
            return [False] * len(self.frame)
        cells = self.cells[heading]
        texts = cells.mask(cells.str.contains("†"), MISSING).str.split(" ").str[0].str.rstrip("‡*")  # †: costs more
        blocks = pd.to_numeric(texts, errors="coerce").groupby(self._blocks.to_numpy())
        return list((blocks.obj == blocks.transform("max")) & (blocks.transform("size") > 1))

    @property
    def starts_block(self) -> list[bool]:
        """Return which rows are the first of a block below another."""
        return list((self._blocks != self._blocks.shift()) & (np.arange(len(self.frame)) > 0))

    @property
    def _blocks(self) -> pd.Series:
        return self.frame[self.blocks] if self.blocks else pd.Series(0, self.frame.index)

    def with_best(self, cells: pd.DataFrame, best: Callable[[str], object]) -> pd.DataFrame:
        """Return the texts of all cells, those of the best numbers as ``best`` writes them."""
        return cells.apply(lambda texts: texts.mask(self.bold(str(texts.name)), texts.map(best)))


def to_terminal(tables: Iterable[Table], faults: Sequence[str] = ()) -> "Group":
    """Render tables for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for table in tables:
        notes = [Text(note, style="dim") for note in table.all_notes]
        shown, cells = plain_table(), table.with_best(table.cells, partial(plain_text, style="bold"))
        for heading in cells:
            add_columns(shown, str(heading), numbers=heading not in table.words)
        for row, starts_block in zip(cells.itertuples(index=False), table.starts_block, strict=True):
            if starts_block:
                shown.add_section()
            add_row(shown, *row)
        parts += [Text(table.title, style="bold"), shown, *notes, ""]
    return Group(*parts, *(Text(f"left out: {fault}", style="yellow") for fault in faults))


def to_markdown(tables: Iterable[Table]) -> str:
    """Render tables as Markdown."""
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    cells = table.with_best(table.cells.map(_escape_markdown), "**{}**".format)
    rule = ["---" if heading in table.words else "---:" for heading in cells]
    lines = [f"## {_escape_markdown(table.title)}", "", line(map(_escape_markdown, cells)), line(rule)]
    lines += [line(row) for row in cells.itertuples(index=False)]
    return "\n".join([*lines, "", *(f"- {_escape_markdown(note)}" for note in table.all_notes), ""])


def _escape_markdown(text: str) -> str:
    # Names and notes may come from a user's files: they must stay text.
    return re.sub(r"([\\|`*_])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


_MATHS = {"·": r"\cdot", "≤": r"\le", "≥": r"\ge", "†": r"^\dagger", "‡": r"^\ddagger", "×": r"\times", "±": r"\pm"}
_LATEX = {c: "\\" + c for c in "&%#_{}$"} | {c: f"${word}$" for c, word in (_MATHS | {c: c for c in "<>|"}).items()}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}


def escape_latex(text: str) -> str:
    """Escape what LaTeX would read as commands; ``$^3$`` of a display name stays."""
    parts = re.split(r"(\$\^\d\$)", text)  # every other part is such a power
    parts[::2] = ["".join(_LATEX.get(c, c) for c in part) for part in parts[::2]]
    return "".join(parts)


_COLUMN_POINTS = 240
"""Width of a column of a paper of two columns, about as wide as AAAI's and ICML's; ACL's has 219."""
_LETTER_POINTS, _GAP_POINTS = 4.0, 6.0
"""Widths of a letter and of the space between columns, about, in the size of letters of LaTeX tables."""
_SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def to_latex(tables: Iterable[Table], width: Width | None = None) -> str:
    """Render tables as LaTeX: booktabs, a caption, a label, the best numbers bold, methods by their display names.

    Each has the columns that fit its ``width``, by default a column of a paper if it can be read there, else the page.
    A table that is too wide all the same is shrunk.
    """
    return "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(_latex(table, width) for table in tables)


def _latex(table: Table, width: Width | None) -> str:
    named = table.for_a_paper()
    if width is None:
        width = "column" if _latex_points(named.narrowed("column")) < 1.15 * _COLUMN_POINTS else "page"
    narrow, floating = named.narrowed(width), "table" if width == "column" else "table*"
    cells = narrow.with_best(narrow.cells.map(_latex_number), partial(re.sub, "^[^ ]+", r"\\textbf{\g<0>}"))
    caption = escape_latex(" ".join([f"{narrow.title}.", *narrow.all_notes]))
    lines = [f"\\begin{{{floating}}}", "\\centering\\footnotesize\\setlength{\\tabcolsep}{2.5pt}"]
    lines += [f"\\caption{{{caption}}}", f"\\label{{tab:{narrow.name}}}\\vspace{{3pt}}", _SHRUNK]
    lines += [f"\\begin{{tabular}}{{{''.join('l' if heading in narrow.words else 'r' for heading in cells)}}}"]
    lines += ["\\toprule", " & ".join(map(escape_latex, map(str, cells))) + r" \\", "\\midrule"]
    for row, starts_block in zip(cells.itertuples(index=False), narrow.starts_block, strict=True):
        lines += [*(["\\midrule"] if starts_block else []), " & ".join(row) + r" \\"]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", f"\\end{{{floating}}}", ""])


def _latex_points(table: Table) -> float:
    letters = [max(map(len, [str(heading), *texts])) for heading, texts in table.cells.items()]
    return sum(_LETTER_POINTS * number + _GAP_POINTS for number in letters)


def _latex_number(text: str) -> str:
    number = re.sub(r"^-(?=[\d.])", "$-$", escape_latex(text)).replace("[-", "[$-$").replace(", -", ", $-$")
    return re.sub(r"(?<=\d|\$) (\[.*\])$", r" {\\scriptsize \1}", number)


def to_csv(frame: pd.DataFrame) -> str:
    """Render a frame as CSV, numbers rounded to six significant decimals."""
    return str(frame.round(6).to_csv(index=False, lineterminator="\n"))


def formatted(tables: Iterable[Table], table_format: TableFormat, width: Width | None = None) -> str:
    """Render tables as ``md``, ``latex`` (of a ``width``) or ``csv``."""
    if table_format == "md":
        return to_markdown(tables)
    if table_format == "latex":
        return to_latex(tables, width)
    return "\n".join(to_csv(table.numbers) for table in tables)


def write_tables(
    tables: Iterable[Table], folder: Path, table_format: TableFormat, width: Width | None = None
) -> list[Path]:
    """Write each table into a file of its name, such as ``headline.tex``; return the files."""
    suffix = "tex" if table_format == "latex" else table_format
    texts = {folder / f"{table.name}.{suffix}": formatted([table], table_format, width) for table in tables}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)
