"""check-task: every row of a task read, counted and compared between splits; what is wrong, in plain words."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.checking.check_report import (
    TRUNCATION_WARNING,
    TaskReport,
    count_words,
    length_table,
    overlap_findings,
    overlap_table,
    overlaps,
    repeats_of,
    size_findings,
)
from benchmarks.tasks.checking.check_text import examine_text_task, text_tables
from benchmarks.tasks.loader import list_tasks, load_task
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data.instances import Split, TaskData, Text
from consistentee.data.prompts import TextTask
from consistentee.errors import UserError, unknown_name
from consistentee.training.recipe import RecipeSettings

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

ONE_SIDED = 0.9
USUAL_LENGTH = RecipeSettings().max_length
"""What a recipe cuts rows to unless it says otherwise: :class:`consistentee.Recipe`."""


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
    report.overlaps = list(overlaps(task))
    if isinstance(task, TextTask):
        examine_text_task(task, report, backbone)
    else:
        _examine_classification(task, report, backbone)
    overlap_findings(task, report)
    size_findings(task, report)
    return report


def _examine_classification(task: TaskData, report: TaskReport, backbone: str | None) -> None:
    measure = count_words if backbone is None else _tokens_of(backbone)
    report.unit = "words" if backbone is None else f"tokens of {backbone}"
    report.lengths = {split.name: np.asarray(measure(split.texts)) for split in _splits_of(task)}
    _label_findings(task, report)
    _length_findings(report)


def _splits_of(task: TaskData) -> tuple[Split, Split, Split]:
    return task.train, task.validation, task.test


def _tokens_of(backbone: str) -> Callable[[Sequence[Text]], list[int]]:
    from consistentee.backbones.catalog import resolve
    from consistentee.backbones.pretrained import read_tokenizer
    from consistentee.data.encoding import tokenize

    tokenizer = read_tokenizer(resolve(backbone).path)
    return lambda texts: [len(encoding) for encoding in tokenize(tokenizer, texts, max_length=100_000)]


# ---------------------------------------------------------------------------------------------- findings


def _label_findings(task: TaskData, report: TaskReport) -> None:
    for split in _splits_of(task):
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


def _length_findings(report: TaskReport) -> None:
    for name, lengths in report.lengths.items():
        share = float((lengths > USUAL_LENGTH).mean())
        if share > TRUNCATION_WARNING:
            report.warnings.append(
                f"{100 * share:.0f}% of {name} have more than {USUAL_LENGTH} {report.unit}: give the recipe a larger "
                "max_length, or they are cut"
            )


# ---------------------------------------------------------------------------------------------- showing


def report_tables(report: TaskReport) -> "Group":
    """Return the report for a terminal: tables, then warnings, then errors, then the verdict."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(f"warning: {line}.", style="yellow") for line in report.warnings]
    lines += [Text(f"error: {line}.", style="red") for line in report.errors]
    verdict = f"{len(report.errors)} errors, {len(report.warnings)} warnings" if lines else "nothing is wrong"
    task = report.task
    tables = [] if task is None else text_tables(task, report) if isinstance(task, TextTask) else _tables(task, report)
    return Group(*tables, *lines, Text(f"{report.name}: {verdict}"))


def _tables(task: TaskData, report: TaskReport) -> Iterator["Table"]:
    pair = "pairs" if isinstance(task.train.texts[0], tuple) else "single texts"
    target = "a number" if task.regression else f"{task.num_labels} classes"
    title = f"{task.name}, version {task.version}: {pair}, {target}, scored by {', '.join(task.metrics)}"
    yield length_table(
        title, task.notes, report.unit, lengths=report.lengths, limit=USUAL_LENGTH, repeats=repeats_of(report)
    )
    yield _target_table(task) if task.regression else _label_table(task)
    yield overlap_table(report)


def _label_table(task: TaskData) -> "Table":
    table = plain_table("Labels: rows (%)")
    add_columns(table, "label")
    add_columns(table, *(split.name for split in _splits_of(task)), numbers=True)
    counts = [Counter(split.labels) for split in _splits_of(task)]
    for index, name in enumerate(task.label_names):
        add_row(table, name, *(f"{c[index]} ({100 * c[index] / c.total():.1f})" for c in counts))
    return table


def _target_table(task: TaskData) -> "Table":
    table = plain_table("Targets")
    add_columns(table, "split")
    add_columns(table, "min", "25%", "median", "75%", "max", numbers=True)
    for split in _splits_of(task):
        add_row(table, split.name, *(f"{v:.3g}" for v in np.quantile(split.labels, (0, 0.25, 0.5, 0.75, 1))))
    return table
