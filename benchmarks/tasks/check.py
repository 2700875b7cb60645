"""Check a task: read every row, count labels and lengths, compare the splits, and list what would spoil its scores."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.tasks.loader import list_tasks, load_task
from benchmarks.terminal import add_columns, add_row, plain_table, plain_text
from consistentee.data.instances import Split, TaskData, Text
from consistentee.data.prompts import Encode, PromptSplit, TextTask, cut_prompt
from consistentee.errors import UserError, unknown_name
from consistentee.training.recipe import RecipeSettings

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

LEAKAGE_ERROR = 0.1
"""From this share of test texts that are also in train, the score measures memory."""
ONE_SIDED = 0.9
"""From this share of one label, accuracy hardly separates methods."""
FEW_ROWS = 100
TRUNCATION_WARNING = 0.05
"""From this share of texts that are cut, the user is warned."""
USUAL_LENGTH = RecipeSettings().max_length
"""Tokens that a recipe cuts rows to by default."""

AnyTask = TaskData | TextTask
Lengths = dict[str, NDArray[np.int64]]
Measure = Callable[[Sequence[Text]], NDArray[np.int64]]


@dataclass(frozen=True)
class Overlap:
    """Texts that two splits share, or that one split has twice; case and runs of spaces are ignored.

    Attributes:
        first, second: names of the splits; equal for repeats within one.
        rows: rows of the second split whose text is in the first, or rows that repeat an earlier one.
        share: ``rows`` as a share of the second split.
        contradicting: rows among them whose answer the same text never has in the first split.
    """

    first: str
    second: str
    rows: int
    share: float
    contradicting: int


@dataclass
class TaskReport:
    """Findings about a task: errors make a score meaningless, warnings are for a reader to weigh.

    Attributes:
        name: the name or path that was checked.
        task: None if it cannot be loaded.
        overlaps: of every split with itself, and of every two splits.
        unit: of lengths: words, or tokens of a backbone.
        lengths: of the texts or prompts of each split.
        response_lengths: of the responses of each split; empty where answers are labels.
    """

    name: str
    task: AnyTask | None = None
    overlaps: list[Overlap] = field(default_factory=list)
    unit: str = "words"
    lengths: Lengths = field(default_factory=dict)
    response_lengths: Lengths = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """The word for an answer: response or label."""
        return "response" if isinstance(self.task, TextTask) else "label"


def check_task(name: str, data_dir: Path | None = None, backbone: str | None = None) -> TaskReport:
    """Read all rows of a task and look for faults that would spoil its scores.

    Args:
        name: a task's name, or the path of its YAML.
        data_dir: where data files are looked for first.
        backbone: measure lengths in its tokens instead of words.

    Raises:
        UserError: there is no such task or file, or no such backbone.
    """
    is_file = Path(name).suffix in (".yaml", ".yml")
    if not is_file and name not in list_tasks():
        raise unknown_name("task", name, list_tasks())
    if is_file and not Path(name).expanduser().is_file():
        raise UserError(f"no such task file: {name}")
    report = TaskReport(name)
    try:
        task = report.task = load_task(name, data_dir)
    except UserError as error:
        report.errors.append(f"{error} (the first fault; mend it and check again)")
        return report
    report.overlaps = list(overlaps(task))
    if backbone is not None:
        report.unit = f"tokens of {backbone}"
    if isinstance(task, TextTask):
        _check_text_task(task, report, backbone)
    else:
        _check_classification(task, report, backbone)
    _check_overlaps(task, report)
    _check_sizes(task, report)
    return report


def normalised(text: Text) -> tuple[str, ...]:
    """Return a text (or a pair) without differences of case, of spaces and of Unicode form."""
    return tuple(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in _parts(text))


def overlaps(task: AnyTask) -> Iterator[Overlap]:
    """Yield the repeats within every split, then the texts that every two splits share."""
    rows = {split.name: _compared_rows(split) for split in (task.train, task.validation, task.test)}
    for name, split in rows.items():
        repeats = split.duplicated("text")
        yield Overlap(name, name, int(repeats.sum()), repeats.mean(), int((repeats & ~split.duplicated()).sum()))
    for first, second in combinations(rows, 2):
        shared = rows[second][rows[second]["text"].isin(rows[first]["text"])]
        known = set(rows[first].itertuples(index=False, name=None))
        contradicting = sum(row not in known for row in shared.itertuples(index=False, name=None))
        yield Overlap(first, second, len(shared), len(shared) / len(rows[second]), contradicting)


def _compared_rows(split: Split | PromptSplit) -> pd.DataFrame:
    if isinstance(split, PromptSplit):
        return pd.DataFrame(
            {"text": list(map(normalised, split.prompts)), "answer": list(map(normalised, split.references))}
        )
    return pd.DataFrame({"text": list(map(normalised, split.texts)), "answer": split.labels})


def _parts(text: Text) -> tuple[str, ...]:
    return text if isinstance(text, tuple) else (text,)


def _count_words(texts: Sequence[Text]) -> NDArray[np.int64]:
    return np.asarray([sum(len(part.split()) for part in _parts(text)) for text in texts])


# ---------------------------------------------------------------------------------------------- findings


def _check_classification(task: TaskData, report: TaskReport, backbone: str | None) -> None:
    measure = _count_words if backbone is None else _token_counter(backbone)
    for split in (task.train, task.validation, task.test):
        report.lengths[split.name] = measure(split.texts)
        _check_labels(task, split, report)
    advice = "give the recipe a larger max_length, or they are cut"
    _check_lengths(report, report.lengths, USUAL_LENGTH, "", advice)


def _token_counter(backbone: str) -> Measure:
    from consistentee.backbones.catalog import resolve
    from consistentee.backbones.pretrained import read_tokenizer
    from consistentee.data.encoding import tokenize

    tokenizer = read_tokenizer(resolve(backbone).path)
    return lambda texts: np.asarray([len(encoding) for encoding in tokenize(tokenizer, texts, max_length=100_000)])


def _check_labels(task: TaskData, split: Split, report: TaskReport) -> None:
    counts = Counter(split.labels)
    if len(counts) == 1:
        report.errors.append(f"every row of {split.name} has the same label: there is nothing to learn")
        return
    if task.regression:
        return
    missing = [name for index, name in enumerate(task.label_names) if index not in counts]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        in_train = split is task.train
        consequence = "nothing can learn it" if in_train else "it is never scored there"
        findings = report.errors if in_train else report.warnings
        findings.append(f"{split.name} has no row of {names}: {consequence}")
    label, rows = counts.most_common(1)[0]
    if rows > ONE_SIDED * len(split) and task.metric == "accuracy":
        share, name = 100 * rows / len(split), task.label_names[int(label)]
        report.warnings.append(f"{share:.0f}% of {split.name} are {name}: accuracy hardly differs between methods")


def _check_lengths(report: TaskReport, lengths: Lengths, limit: int, what: str, consequence: str) -> None:
    for name, values in lengths.items():
        share = float((values > limit).mean())
        if share > TRUNCATION_WARNING:
            longer = f"{100 * share:.0f}% of {what}{name} have more than {limit} {report.unit}"
            report.warnings.append(f"{longer}: {consequence}")


def _check_text_task(task: TextTask, report: TaskReport, backbone: str | None) -> None:
    encode = None if backbone is None else _encoder_of(backbone)
    for split in (task.train, task.validation, task.test):
        for lengths, texts in ((report.lengths, split.prompts), (report.response_lengths, split.references)):
            counts = _count_words(texts) if encode is None else np.asarray([len(encode(text)) for text in texts])
            lengths[split.name] = counts
        if encode is not None:
            _check_prompts_can_be_cut(task, split, report, encode)
    # Limits are in tokens. They are compared with words too, since a word is at least one token.
    cut = f"they are cut, and the {task.keep} stays"
    _check_lengths(report, report.lengths, task.max_prompt_tokens, "the prompts of ", cut)
    unfinished = "they cannot be written to the end"
    _check_lengths(report, report.response_lengths, task.max_new_tokens, "the responses of ", unfinished)


def _encoder_of(backbone: str) -> Encode:
    from consistentee.backbones.catalog import resolve_decoder
    from consistentee.backbones.pretrained import read_tokenizer

    tokenizer = read_tokenizer(resolve_decoder(backbone))
    return lambda text: tokenizer(text).input_ids


def _check_prompts_can_be_cut(task: TextTask, split: PromptSplit, report: TaskReport, encode: Encode) -> None:
    for row in map(int, np.flatnonzero(report.lengths[split.name] > task.max_prompt_tokens)):
        try:
            cut_prompt(encode, split.prompts[row], task.max_prompt_tokens, task.keep)
        except UserError as error:
            report.errors.append(f"row {row + 1} of {split.name}: {error}")
            return


def _check_overlaps(task: AnyTask, report: TaskReport) -> None:
    for overlap in report.overlaps:
        if overlap.first == overlap.second:
            if overlap.contradicting:
                repeats = f"{overlap.contradicting} rows of {overlap.first} repeat an earlier text"
                report.warnings.append(f"{repeats} with another {report.answer}")
        elif overlap.rows:
            share = f"({100 * overlap.share:.1f}%)"
            shared = f"{overlap.rows} rows of {overlap.second} {share} have a text of {overlap.first}"
            if overlap.contradicting:
                shared += f", {overlap.contradicting} of them with another {report.answer}"
            if overlap.second == task.test.name and overlap.share >= LEAKAGE_ERROR:
                report.errors.append(f"{shared}: the score would measure memory; take them out of {overlap.first}")
            else:
                report.warnings.append(shared)


def _check_sizes(task: AnyTask, report: TaskReport) -> None:
    for split, purpose in ((task.validation, "knobs are chosen on it"), (task.test, "scores are measured on it")):
        if len(split) < FEW_ROWS:
            one = f"one row is {100 / len(split):.1f} points"
            report.warnings.append(f"{split.name} has {len(split)} rows: {one}, and {purpose}")


# ---------------------------------------------------------------------------------------------- for a terminal


def report_tables(report: TaskReport) -> "Group":
    """Render a report: tables, then warnings, then errors, then the verdict."""
    from rich.console import Group
    from rich.text import Text

    lines = [plain_text(f"warning: {line}.", style="yellow", longest=2_000) for line in report.warnings]
    lines += [plain_text(f"error: {line}.", style="red", longest=2_000) for line in report.errors]
    verdict = f"{len(report.errors)} errors, {len(report.warnings)} warnings" if lines else "nothing is wrong"
    tables = [] if report.task is None else _tables(report.task, report)
    return Group(*tables, *lines, Text(f"{report.name}: {verdict}"))


def _tables(task: AnyTask, report: TaskReport) -> Iterator["Table"]:
    title = f"{task.name}, version {task.version}: {_kind(task)}, scored by {', '.join(task.metrics)}"
    repeats = {overlap.first: overlap.rows for overlap in report.overlaps if overlap.first == overlap.second}
    limit = task.max_prompt_tokens if isinstance(task, TextTask) else USUAL_LENGTH
    lengths = _length_frame(report.lengths, limit, report.unit)
    yield _table(lengths.assign(repeats=lengths["split"].map(repeats)), title, task.notes)
    if isinstance(task, TextTask):
        yield _table(_length_frame(report.response_lengths, task.max_new_tokens, report.unit), "Responses")
    elif task.regression:
        quantiles = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "max": 1.0}
        lines = {
            split.name: [f"{value:.3g}" for value in np.quantile(split.labels, list(quantiles.values()))]
            for split in (task.train, task.validation, task.test)
        }
        frame = pd.DataFrame.from_dict(lines, orient="index", columns=list(quantiles))
        yield _table(frame.rename_axis("split").reset_index(), "Targets")
    else:
        columns: dict[str, Sequence[str]] = {"label": task.label_names}
        for split in (task.train, task.validation, task.test):
            counts = np.bincount(np.asarray(split.labels, dtype=int), minlength=task.num_labels)
            columns[split.name] = [f"{rows} ({100 * rows / counts.sum():.1f})" for rows in counts]
        yield _table(pd.DataFrame(columns), "Labels: rows (%)")
    between = [
        (one.first, one.second, one.rows, f"{100 * one.share:.1f}", one.contradicting)
        for one in report.overlaps
        if one.first != one.second
    ]
    headings = ["in", "and in", "rows", "% of the second", f"with another {report.answer}"]
    yield _table(pd.DataFrame(between, columns=headings), "Texts in two splits (case and spaces aside)", words=2)


def _kind(task: AnyTask) -> str:
    if isinstance(task, TextTask):
        return "prompts and responses"
    pair = "pairs" if isinstance(task.train.texts[0], tuple) else "single texts"
    return f"{pair}, {'a number' if task.regression else f'{task.num_labels} classes'}"


def _length_frame(lengths: Lengths, limit: int, unit: str) -> pd.DataFrame:
    headings = ["split", "rows", f"{unit} min", "median", "95%", "max", f"over {limit} %"]
    lines = []
    for name, values in lengths.items():
        quantiles = [f"{value:.0f}" for value in np.quantile(values, (0, 0.5, 0.95, 1))]
        lines.append([name, len(values), *quantiles, f"{100 * (values > limit).mean():.1f}"])
    return pd.DataFrame(lines, columns=headings)


def _table(frame: pd.DataFrame, title: str, caption: str = "", *, words: int = 1) -> "Table":
    """Return a table of a frame, whose first columns are words and whose others are numbers."""
    table = plain_table(title, caption)
    headings = list(map(str, frame))
    add_columns(table, *headings[:words])
    add_columns(table, *headings[words:], numbers=True)
    for row in frame.itertuples(index=False):
        add_row(table, *row)
    return table
