"""Check a task: read every row, show sizes, labels and lengths, and list what would spoil its scores."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table

from benchmarks.tasks.loader import load_task
from benchmarks.terminal import filled_table, plain_text
from consistentee.backbones.catalog import resolve, resolve_decoder
from consistentee.backbones.pretrained import read_tokenizer
from consistentee.data.tasks import PromptSplit, Split, TaskData, Text, TextTask
from consistentee.training.recipe import RecipeSettings

LEAKAGE_ERROR = 0.1
"""From this share of test texts that are also in train, the score measures memory."""
ONE_SIDED = 0.9
"""From this share of one label, accuracy hardly separates methods."""
FEW_ROWS = 100
TRUNCATION_WARNING = 0.05
"""From this share of texts that are cut, the user is warned."""


@dataclass(frozen=True)
class TaskReport:
    """Findings about a task: errors make a score meaningless, warnings are for a reader to weigh.

    Attributes:
        unit: of lengths: words, or tokens of a backbone.
        rows: all rows: ``split``, ``text`` and ``answer`` (both normalised), ``length``, and ``response_length`` if
            answers are texts.
    """

    task: TaskData | TextTask
    unit: str
    rows: pd.DataFrame
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def limits(self) -> list[tuple[str, str, int, str]]:
        """Each length: what it is of, its column, its limit in tokens (or words, which are no shorter), the effect."""
        if isinstance(self.task, TaskData):
            cut = "give the recipe a larger max_length, or they are cut"
            return [("rows", "length", RecipeSettings().max_length, cut)]
        cut, unfinished = f"they are cut, and the {self.task.keep} stays", "they cannot be written to the end"
        return [
            ("prompts", "length", self.task.max_prompt_tokens, cut),
            ("responses", "response_length", self.task.max_new_tokens, unfinished),
        ]


def check_task(name: str, data_dir: Path | None = None, backbone: str | None = None) -> TaskReport:
    """Read all rows of a task, of a name or a YAML's path, and look for faults that would spoil its scores.

    With a ``backbone`` lengths are in its tokens instead of words. Raises UserError for a task that cannot be loaded
    (a faulty row is named by file and line), and if there is no such backbone.
    """
    task = load_task(name, data_dir)
    tokenizer = None
    if backbone is not None:
        tokenizer = read_tokenizer(resolve_decoder(backbone) if isinstance(task, TextTask) else resolve(backbone).path)
    rows = pd.concat([_rows_of(split, tokenizer) for split in (task.train, task.validation, task.test)])
    report = TaskReport(task, "words" if backbone is None else f"tokens of {backbone}", rows)
    for what, column, limit, consequence in report.limits:
        shares = (rows[column] > limit).groupby(rows["split"], sort=False).mean()
        for split, share in shares[shares > TRUNCATION_WARNING].items():
            longer = f"{100 * share:.0f}% of the {what} of {split} have more than {limit} {report.unit}"
            report.warnings.append(f"{longer}: {consequence}")
    if isinstance(task, TaskData):
        for labelled in (task.train, task.validation, task.test):
            _check_labels(task, labelled, report)
    _check_overlaps(report)
    for split, purpose in ((task.validation, "knobs are chosen on it"), (task.test, "scores are measured on it")):
        if len(split) < FEW_ROWS:
            one = f"one row is {100 / len(split):.1f} points"
            report.warnings.append(f"{split.name} has {len(split)} rows: {one}, and {purpose}")
    return report


def normalised(text: Text) -> tuple[str, ...]:
    """Return a text (or a pair) without differences of case, of spaces and of Unicode form."""
    return tuple(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in _parts(text))


def _parts(text: Text) -> tuple[str, ...]:
    return text if isinstance(text, tuple) else (text,)


def _lengths(texts: Sequence[Text], tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return [sum(len(part.split()) for part in _parts(text)) for text in texts]
    return [len(tokenizer(*_parts(text)).input_ids) for text in texts]


def _rows_of(split: Split | PromptSplit, tokenizer: Any) -> pd.DataFrame:
    texts = split.texts if isinstance(split, Split) else split.prompts
    lengths = _lengths(texts, tokenizer)
    rows = pd.DataFrame({"split": split.name, "text": list(map(normalised, texts)), "length": lengths})
    if isinstance(split, Split):
        return rows.assign(answer=split.labels)
    responses = {"answer": list(map(normalised, split.references))}
    return rows.assign(**responses, response_length=_lengths(split.references, tokenizer))


def _check_labels(task: TaskData, split: Split, report: TaskReport) -> None:
    counts = pd.Series(split.labels).value_counts()
    if len(counts) == 1:
        report.errors.append(f"every row of {split.name} has the same label: there is nothing to learn")
        return
    if task.regression:
        return
    missing = [name for index, name in enumerate(task.label_names) if index not in counts]
    if missing:
        names = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        findings, consequence = report.warnings, "it is never scored there"
        if split is task.train:
            findings, consequence = report.errors, "nothing can learn it"
        findings.append(f"{split.name} has no row of {names}: {consequence}")
    share = counts.iloc[0] / len(split)
    if share > ONE_SIDED and task.metric == "accuracy":
        name = task.label_names[int(counts.index[0])]
        report.warnings.append(f"{share:.0%} of {split.name} are {name}: accuracy hardly differs between methods")


def _check_overlaps(report: TaskReport) -> None:
    """Find texts that a split repeats with another answer, and texts that two splits share."""
    splits = dict(iter(report.rows.groupby("split", sort=False)))
    for name, split in splits.items():
        contradicting = (split.duplicated("text") & ~split.duplicated(["text", "answer"])).sum()
        if contradicting:
            report.warnings.append(f"{contradicting} rows of {name} repeat an earlier text with another answer")
    for first, second in combinations(splits, 2):
        shared = splits[second]["text"].isin(splits[first]["text"])
        finding = f"{shared.sum()} rows of {second} ({shared.mean():.1%}) have a text of {first}"
        if second == "test" and shared.mean() >= LEAKAGE_ERROR:
            report.errors.append(f"{finding}: the score would measure memory; take them out of {first}")
        elif shared.any():
            report.warnings.append(finding)


def report_tables(report: TaskReport) -> Group:
    """Render a report: tables, then warnings, then errors, then the verdict."""
    lines = [plain_text(f"warning: {line}.", style="yellow", longest=2_000) for line in report.warnings]
    lines += [plain_text(f"error: {line}.", style="red", longest=2_000) for line in report.errors]
    verdict = f"{len(report.errors)} errors, {len(report.warnings)} warnings" if lines else "nothing is wrong"
    return Group(*_tables(report), *lines, plain_text(f"{report.task.name}: {verdict}"))


def _tables(report: TaskReport) -> Iterator[Table]:
    task = report.task
    title = f"{task.name}, version {task.version}, scored by {', '.join(task.metrics)}"
    by_split = report.rows.groupby("split", sort=False)
    for what, column, limit, _ in report.limits:
        lengths = by_split[column].describe(percentiles=[0.5, 0.95]).round().astype(int)
        over = [f"{100 * (own > limit).mean():.1f}" for _, own in by_split[column]]
        rows = zip(lengths.index, *(lengths[name] for name in ("count", "50%", "95%", "max")), over, strict=True)
        numbers = ["rows", f"{report.unit} median", "95%", "max", f"over {limit} %"]
        yield filled_table([f"split: {what}"], numbers, rows, title, task.notes)
    if isinstance(task, TaskData) and not task.regression:
        counts = by_split["answer"].value_counts().unstack("split", fill_value=0)
        counts = counts.reindex(range(task.num_labels), fill_value=0)
        rows = zip(task.label_names, *(counts[name] for name in counts), strict=True)
        yield filled_table(["label: rows"], list(counts), rows)
