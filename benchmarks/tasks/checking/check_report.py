"""What check-task finds in a task of any kind: lengths, repeats, rows that two splits share, small splits."""

import unicodedata
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data.instances import Split, TaskData, Text
from consistentee.data.prompts import PromptSplit, TextTask

if TYPE_CHECKING:
    from rich.table import Table

LEAKAGE_ERROR = 0.1
"""Share of test texts that are also in train, from which on the score measures memory."""
FEW_ROWS = 100
TRUNCATION_WARNING = 0.05
"""Share of texts that are cut, from which on a reader should know."""

AnyTask = TaskData | TextTask
AnySplit = Split | PromptSplit


@dataclass(frozen=True)
class Overlap:
    """Texts that two splits share (or that one has twice), compared without case and runs of spaces.

    Attributes:
        first, second: names of the splits; the same for repeats within one.
        rows: rows of the second split whose text is in the first, or rows that repeat an earlier one.
        share: of the rows of the second split.
        contradicting: those of them whose answer is never that of the same text in the first split.
    """

    first: str
    second: str
    rows: int
    share: float
    contradicting: int


@dataclass
class TaskReport:
    """What was found; errors make a score meaningless, warnings are for a reader to weigh.

    Attributes:
        name: as the task was asked for.
        task: None where it cannot be loaded.
        overlaps: see :func:`overlaps`.
        lengths: of the texts or prompts, by split, in ``unit``.
        response_lengths: of the responses, by split; empty where answers are labels.
    """

    name: str
    task: AnyTask | None = None
    overlaps: list[Overlap] = field(default_factory=list)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    response_lengths: dict[str, np.ndarray] = field(default_factory=dict)
    unit: str = "words"
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """What an answer is called."""
        return "response" if isinstance(self.task, TextTask) else "label"


def splits_of(task: AnyTask) -> tuple[AnySplit, AnySplit, AnySplit]:
    """Return the three splits."""
    return task.train, task.validation, task.test


def normalised(text: Text) -> tuple[str, ...]:
    """Return a text (or a pair) without differences of case, of spaces and of Unicode form."""
    parts = text if isinstance(text, tuple) else (text,)
    return tuple(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)


def count_words(texts: Sequence[Text]) -> list[int]:
    """Return the number of words of every text, or of both texts of a pair."""
    return [sum(len(part.split()) for part in (text if isinstance(text, tuple) else (text,))) for text in texts]


def overlaps(task: AnyTask) -> Iterator[Overlap]:
    """Yield the repeats within every split, then the texts that every two splits share."""
    rows = {split.name: _normalised_rows(split) for split in splits_of(task)}
    answers: dict[str, dict[tuple[str, ...], set[Hashable]]] = {}
    for name, split in rows.items():
        known = answers.setdefault(name, {})
        repeats = contradicting = 0
        for text, answer in split:
            if text in known:
                repeats += 1
                contradicting += answer not in known[text]
            known.setdefault(text, set()).add(answer)
        yield Overlap(name, name, repeats, repeats / len(split), contradicting)
    for first, second in combinations(rows, 2):
        known = answers[first]
        shared = [(text, answer) for text, answer in rows[second] if text in known]
        contradicting = sum(answer not in known[text] for text, answer in shared)
        yield Overlap(first, second, len(shared), len(shared) / len(rows[second]), contradicting)


def _normalised_rows(split: AnySplit) -> list[tuple[tuple[str, ...], Hashable]]:
    """Return what is compared of every row, and its answer."""
    if isinstance(split, PromptSplit):
        return list(zip(map(normalised, split.prompts), map(normalised, split.references), strict=True))
    return list(zip(map(normalised, split.texts), split.labels, strict=True))


# ---------------------------------------------------------------------------------------------- findings


def overlap_findings(task: AnyTask, report: TaskReport) -> None:
    """Look at what repeats: within a split if the answers differ, and between splits."""
    for overlap in report.overlaps:
        if overlap.first == overlap.second:
            if overlap.contradicting:
                report.warnings.append(
                    f"{overlap.contradicting} rows of {overlap.first} repeat an earlier text with another "
                    f"{report.answer}"
                )
            continue
        if not overlap.rows:
            continue
        shared = f"{overlap.rows} rows of {overlap.second} ({100 * overlap.share:.1f}%) have a text of {overlap.first}"
        if overlap.contradicting:
            shared += f", {overlap.contradicting} of them with another {report.answer}"
        if overlap.second == task.test.name and overlap.share >= LEAKAGE_ERROR:
            report.errors.append(f"{shared}: the score would measure memory; take them out of {overlap.first}")
        else:
            report.warnings.append(shared)


def size_findings(task: AnyTask, report: TaskReport) -> None:
    """Look for splits that are too small to tell much."""
    for split in (task.validation, task.test):
        if len(split) < FEW_ROWS:
            purpose = "knobs are chosen on it" if split is task.validation else "scores are measured on it"
            report.warnings.append(
                f"{split.name} has {len(split)} rows: one row is {100 / len(split):.1f} points, and {purpose}"
            )


# ---------------------------------------------------------------------------------------------- tables


def length_table(
    title: str, caption: str, unit: str, *, lengths: Mapping[str, np.ndarray], limit: int, repeats: Mapping[str, int]
) -> "Table":
    """Return the table of sizes and lengths, a row a split; ``repeats`` may be empty."""
    table = plain_table(title, caption)
    add_columns(table, "split")
    add_columns(table, "rows", f"{unit} min", "median", "95%", "max", f"over {limit} %", numbers=True)
    if repeats:
        add_columns(table, "repeats", numbers=True)
    for name, values in lengths.items():
        quantiles = [f"{value:.0f}" for value in np.quantile(values, (0, 0.5, 0.95, 1))]
        over = f"{100 * (values > limit).mean():.1f}"
        add_row(table, name, len(values), *quantiles, over, *([repeats[name]] if repeats else []))
    return table


def repeats_of(report: TaskReport) -> dict[str, int]:
    """Return how many rows of every split repeat an earlier one."""
    return {overlap.first: overlap.rows for overlap in report.overlaps if overlap.first == overlap.second}


def overlap_table(report: TaskReport) -> "Table":
    """Return the table of what every two splits share."""
    table = plain_table("Texts in two splits (case and spaces aside)")
    add_columns(table, "in", "and in")
    add_columns(table, "rows", "% of the second", f"with another {report.answer}", numbers=True)
    for overlap in report.overlaps:
        if overlap.first != overlap.second:
            share = f"{100 * overlap.share:.1f}"
            add_row(table, overlap.first, overlap.second, overlap.rows, share, overlap.contradicting)
    return table
