"""check-task: every row of a task read, counted and compared between splits; what is wrong, in plain words."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.loader import list_tasks, load_task
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data import Label, Split, TaskData, Text
from consistentee.errors import UserError, unknown_name

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

LEAKAGE_ERROR = 0.1
"""Share of test texts that are also in train, from which on the score measures memory."""
FEW_ROWS = 100
ONE_SIDED = 0.9
USUAL_LENGTH = 128
"""What a recipe cuts rows to unless it says otherwise: :class:`consistentee.training.Recipe`."""
_TRUNCATION_WARNING = 0.05


@dataclass(frozen=True)
class Overlap:
    """Texts that two splits share (or that one has twice), compared without case and runs of spaces.

    Attributes:
        first, second: names of the splits; the same for repeats within one.
        rows: rows of the second split whose text is in the first, or rows that repeat an earlier one.
        share: of the rows of the second split.
        contradicting: those of them whose label is never that of the same text in the first split.
    """

    first: str
    second: str
    rows: int
    share: float
    contradicting: int


@dataclass
class TaskReport:
    """What was found; errors make a score meaningless, warnings are for a reader to weigh."""

    name: str
    task: TaskData | None = None
    overlaps: list[Overlap] = field(default_factory=list)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    unit: str = "words"
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_task(name: str, data_dir: Path | None = None, backbone: str | None = None) -> TaskReport:
    """Read all rows of a task and look for what would spoil its scores.

    Args:
        name: a task's name, or the path of its YAML.
        data_dir: where data files are looked for first.
        backbone: measure lengths in its tokens instead of in words.

    Raises:
        UserError: there is no such task or file, or no such backbone.
    """
    if Path(name).suffix not in (".yaml", ".yml") and name not in list_tasks():
        raise unknown_name("task", name, list_tasks())
    if Path(name).suffix in (".yaml", ".yml") and not Path(name).expanduser().is_file():
        raise UserError(f"no such task file: {name}")
    report = TaskReport(name)
    try:
        task = report.task = load_task(name, data_dir)
    except UserError as error:  # a faulty row, a faulty YAML, missing files: what a check is there to tell
        report.errors.append(f"{error} (the first fault; mend it and check again)")
        return report
    report.unit, measure = ("words", _words) if backbone is None else (f"tokens of {backbone}", _tokens_of(backbone))
    report.lengths = {split.name: np.asarray(measure(split.texts)) for split in splits_of(task)}
    report.overlaps = list(overlaps(task))
    for finding in (_label_findings, _overlap_findings, _length_findings, _size_findings):
        finding(task, report)
    return report


def splits_of(task: TaskData) -> tuple[Split, Split, Split]:
    """Return the three splits."""
    return task.train, task.validation, task.test


def normalised(text: Text) -> tuple[str, ...]:
    """Return a text (or a pair) without differences of case, of spaces and of Unicode form."""
    parts = text if isinstance(text, tuple) else (text,)
    return tuple(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)


def overlaps(task: TaskData) -> Iterator[Overlap]:
    """Yield the repeats within every split, then the texts that every two splits share."""
    texts = {split.name: [normalised(text) for text in split.texts] for split in splits_of(task)}
    labels: dict[str, dict[tuple[str, ...], set[Label]]] = {}
    for split in splits_of(task):
        known = labels.setdefault(split.name, {})
        repeats = contradicting = 0
        for text, label in zip(texts[split.name], split.labels, strict=True):
            if text in known:
                repeats += 1
                contradicting += label not in known[text]
            known.setdefault(text, set()).add(label)
        yield Overlap(split.name, split.name, repeats, repeats / len(split), contradicting)
    for first, second in combinations(splits_of(task), 2):
        known = labels[first.name]
        shared = [row for row, text in enumerate(texts[second.name]) if text in known]
        contradicting = sum(second.labels[row] not in known[texts[second.name][row]] for row in shared)
        yield Overlap(first.name, second.name, len(shared), len(shared) / len(second), contradicting)


def _words(texts: Sequence[Text]) -> list[int]:
    return [sum(len(part.split()) for part in (text if isinstance(text, tuple) else (text,))) for text in texts]


def _tokens_of(backbone: str) -> Callable[[Sequence[Text]], list[int]]:
    from transformers import AutoTokenizer

    from consistentee.backbones.catalog import resolve
    from consistentee.encoding import tokenize

    tokenizer = AutoTokenizer.from_pretrained(resolve(backbone).path)
    return lambda texts: [len(encoding) for encoding in tokenize(tokenizer, texts, max_length=100_000)]


# ---------------------------------------------------------------------------------------------- findings


def _label_findings(task: TaskData, report: TaskReport) -> None:
    for split in splits_of(task):
        counts = Counter(split.labels)
        if len(counts) == 1:
            report.errors.append(f"every row of {split.name} has the same label: nothing can be told apart there")
            continue
        if task.regression:
            continue
        missing = [name for index, name in enumerate(task.label_names) if index not in counts]
        if missing:
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            where = report.errors if split is task.train else report.warnings
            consequence = "nothing can learn it" if split is task.train else "it is never scored there"
            where.append(f"{split.name} has no row of {names}: {consequence}")
        largest = counts.most_common(1)[0]
        if largest[1] > ONE_SIDED * len(split) and task.metric == "accuracy":
            share, name = 100 * largest[1] / len(split), task.label_names[int(largest[0])]
            report.warnings.append(f"{share:.0f}% of {split.name} are {name}: accuracy hardly tells methods apart")


def _overlap_findings(task: TaskData, report: TaskReport) -> None:
    for overlap in report.overlaps:
        if overlap.first == overlap.second:
            if overlap.contradicting:
                report.warnings.append(
                    f"{overlap.contradicting} rows of {overlap.first} repeat an earlier text with another label"
                )
            continue
        if not overlap.rows:
            continue
        shared = f"{overlap.rows} rows of {overlap.second} ({100 * overlap.share:.1f}%) have a text of {overlap.first}"
        if overlap.contradicting:
            shared += f", {overlap.contradicting} of them with another label"
        if overlap.second == task.test.name and overlap.share >= LEAKAGE_ERROR:
            report.errors.append(f"{shared}: the score would measure memory; take them out of {overlap.first}")
        else:
            report.warnings.append(shared)


def _length_findings(task: TaskData, report: TaskReport) -> None:
    for name, lengths in report.lengths.items():
        share = float((lengths > USUAL_LENGTH).mean())
        if share > _TRUNCATION_WARNING:
            report.warnings.append(
                f"{100 * share:.0f}% of {name} have more than {USUAL_LENGTH} {report.unit}: give the recipe a larger "
                "max_length, or they are cut"
            )


def _size_findings(task: TaskData, report: TaskReport) -> None:
    for split in (task.validation, task.test):
        if len(split) < FEW_ROWS:
            purpose = "knobs are chosen on it" if split is task.validation else "scores are measured on it"
            report.warnings.append(
                f"{split.name} has {len(split)} rows: one row is {100 / len(split):.1f} points, and {purpose}"
            )


# ---------------------------------------------------------------------------------------------- showing


def report_tables(report: TaskReport) -> "Group":
    """Return the report for a terminal: tables, then warnings, then errors, then the verdict."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(f"warning: {line}.", style="yellow") for line in report.warnings]
    lines += [Text(f"error: {line}.", style="red") for line in report.errors]
    verdict = f"{len(report.errors)} errors, {len(report.warnings)} warnings" if lines else "nothing is wrong"
    tables = [] if report.task is None else [*_tables(report.task, report)]
    return Group(*tables, *lines, Text(f"{report.name}: {verdict}"))


def _tables(task: TaskData, report: TaskReport) -> Iterator["Table"]:
    pair = "pairs" if isinstance(task.train.texts[0], tuple) else "single texts"
    target = "a number" if task.regression else f"{task.num_labels} classes"
    sizes = plain_table(
        f"{task.name}, version {task.version}: {pair}, {target}, scored by {', '.join(task.metrics)}", task.notes
    )
    add_columns(sizes, "split")
    add_columns(
        sizes, "rows", f"{report.unit} min", "median", "95%", "max", f"over {USUAL_LENGTH} %", "repeats", numbers=True
    )
    repeats = {overlap.first: overlap.rows for overlap in report.overlaps if overlap.first == overlap.second}
    for split in splits_of(task):
        lengths = report.lengths[split.name]
        quantiles = [f"{value:.0f}" for value in np.quantile(lengths, (0, 0.5, 0.95, 1))]
        over = f"{100 * (lengths > USUAL_LENGTH).mean():.1f}"
        add_row(sizes, split.name, len(split), *quantiles, over, repeats[split.name])
    yield sizes
    yield _target_table(task) if task.regression else _label_table(task)
    shared = plain_table("Texts in two splits (case and spaces aside)")
    add_columns(shared, "in", "and in")
    add_columns(shared, "rows", "% of the second", "with another label", numbers=True)
    for overlap in report.overlaps:
        if overlap.first != overlap.second:
            share = f"{100 * overlap.share:.1f}"
            add_row(shared, overlap.first, overlap.second, overlap.rows, share, overlap.contradicting)
    yield shared


def _label_table(task: TaskData) -> "Table":
    table = plain_table("Labels: rows (%)")
    add_columns(table, "label")
    add_columns(table, *(split.name for split in splits_of(task)), numbers=True)
    counts = [Counter(split.labels) for split in splits_of(task)]
    for index, name in enumerate(task.label_names):
        shares = [f"{c[index]} ({100 * c[index] / s:.1f})" for c, s in zip(counts, _sizes(task), strict=True)]
        add_row(table, name, *shares)
    return table


def _sizes(task: TaskData) -> list[int]:
    return [len(split) for split in splits_of(task)]


def _target_table(task: TaskData) -> "Table":
    table = plain_table("Targets")
    add_columns(table, "split")
    add_columns(table, "min", "25%", "median", "75%", "max", numbers=True)
    for split in splits_of(task):
        add_row(table, split.name, *(f"{v:.3g}" for v in np.quantile(split.labels, (0, 0.25, 0.5, 0.75, 1))))
    return table
