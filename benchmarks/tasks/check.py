"""Check a task: read every row, count labels and lengths, compare the splits, and list what would spoil its scores."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd
from rich.console import Group
from rich.table import Table

from benchmarks.tasks.loader import list_tasks, load_task
from benchmarks.terminal import filled_table, plain_text
from consistentee.data.instances import Split, TaskData, Text
from consistentee.data.prompts import PromptSplit, TextTask
from consistentee.errors import UserError, unknown_name
from consistentee.training.recipe import RecipeSettings

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
Measure = Callable[[Sequence[Text]], list[int]]


@dataclass
class TaskReport:
    """Findings about a task: errors make a score meaningless, warnings are for a reader to weigh.

    Attributes:
        task: None if it cannot be loaded.
        unit: of lengths: words, or tokens of a backbone.
        rows: all rows: ``split``, ``text`` and ``answer`` (both normalised), ``length``, and ``response_length`` if
            answers are texts.
    """

    name: str
    task: AnyTask | None = None
    unit: str = "words"
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_task(name: str, data_dir: Path | None = None, backbone: str | None = None) -> TaskReport:
    """Read all rows of a task, of a name or a YAML's path, and look for faults that would spoil its scores.

    With a ``backbone`` lengths are in its tokens instead of words. Raises UserError if there is no such task or file,
    or no such backbone.
    """
    is_file = Path(name).suffix in (".yaml", ".yml")
    if not is_file and name not in list_tasks():
        raise unknown_name("task", name, list_tasks())
    if is_file and not Path(name).expanduser().is_file():
        raise UserError(f"no such task file: {name}")
    report = TaskReport(name, unit="words" if backbone is None else f"tokens of {backbone}")
    try:
        task = report.task = load_task(name, data_dir)
    except UserError as error:
        report.errors.append(f"{error} (the first fault; fix it and check again)")
        return report
    measure = _count_words if backbone is None else _token_counter(task, backbone)
    report.rows = pd.concat([_rows_of(split, measure) for split in (task.train, task.validation, task.test)])
    if isinstance(task, TextTask):  # a word is at least one token: the limits, in tokens, hold for words too
        cut, unfinished = f"they are cut, and the {task.keep} stays", "they cannot be written to the end"
        _check_lengths(report, "length", task.max_prompt_tokens, "the prompts of ", cut)
        _check_lengths(report, "response_length", task.max_new_tokens, "the responses of ", unfinished)
    else:
        for labelled in (task.train, task.validation, task.test):
            _check_labels(task, labelled, report)
        _check_lengths(report, "length", USUAL_LENGTH, "", "give the recipe a larger max_length, or they are cut")
    _check_overlaps(report, "response" if isinstance(task, TextTask) else "label")
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


def _count_words(texts: Sequence[Text]) -> list[int]:
    return [sum(len(part.split()) for part in _parts(text)) for text in texts]


def _token_counter(task: AnyTask, backbone: str) -> Measure:
    from consistentee.backbones.catalog import resolve, resolve_decoder
    from consistentee.backbones.pretrained import read_tokenizer

    tokenizer = read_tokenizer(resolve_decoder(backbone) if isinstance(task, TextTask) else resolve(backbone).path)
    return lambda texts: [len(tokenizer(*_parts(text)).input_ids) for text in texts]


def _rows_of(split: Split | PromptSplit, measure: Measure) -> pd.DataFrame:
    if isinstance(split, Split):
        columns = {"text": list(map(normalised, split.texts)), "answer": split.labels, "length": measure(split.texts)}
    else:
        columns = {
            "text": list(map(normalised, split.prompts)),
            "answer": list(map(normalised, split.references)),
            "length": measure(split.prompts),
            "response_length": measure(split.references),
        }
    return pd.DataFrame(columns).assign(split=split.name)


# ---------------------------------------------------------------------------------------------- findings


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


def _check_lengths(report: TaskReport, column: str, limit: int, what: str, consequence: str) -> None:
    shares = (report.rows[column] > limit).groupby(report.rows["split"], sort=False).mean()
    for name, share in shares[shares > TRUNCATION_WARNING].items():
        longer = f"{100 * share:.0f}% of {what}{name} have more than {limit} {report.unit}"
        report.warnings.append(f"{longer}: {consequence}")


def _check_overlaps(report: TaskReport, answer: str) -> None:
    """Find texts that a split repeats with another answer, and texts that two splits share."""
    splits = dict(iter(report.rows.groupby("split", sort=False)))
    for name, split in splits.items():
        contradicting = (split.duplicated("text") & ~split.duplicated(["text", "answer"])).sum()
        if contradicting:
            report.warnings.append(f"{contradicting} rows of {name} repeat an earlier text with another {answer}")
    for first, second in combinations(splits, 2):
        shared = splits[second][splits[second]["text"].isin(splits[first]["text"])]
        if shared.empty:
            continue
        share = len(shared) / len(splits[second])
        finding = f"{len(shared)} rows of {second} ({100 * share:.1f}%) have a text of {first}"
        known = set(zip(splits[first]["text"], splits[first]["answer"], strict=True))
        if others := sum(pair not in known for pair in zip(shared["text"], shared["answer"], strict=True)):
            finding += f", {others} of them with another {answer}"
        if second == "test" and share >= LEAKAGE_ERROR:
            report.errors.append(f"{finding}: the score would measure memory; take them out of {first}")
        else:
            report.warnings.append(finding)


# ---------------------------------------------------------------------------------------------- for a terminal


def report_tables(report: TaskReport) -> Group:
    """Render a report: tables, then warnings, then errors, then the verdict."""
    lines = [plain_text(f"warning: {line}.", style="yellow", longest=2_000) for line in report.warnings]
    lines += [plain_text(f"error: {line}.", style="red", longest=2_000) for line in report.errors]
    verdict = f"{len(report.errors)} errors, {len(report.warnings)} warnings" if lines else "nothing is wrong"
    tables = [] if report.task is None else _tables(report.task, report)
    return Group(*tables, *lines, plain_text(f"{report.name}: {verdict}"))


def _tables(task: AnyTask, report: TaskReport) -> Iterator[Table]:
    title = f"{task.name}, version {task.version}: {_kind(task)}, scored by {', '.join(task.metrics)}"
    limit = task.max_prompt_tokens if isinstance(task, TextTask) else USUAL_LENGTH
    yield _table(_length_frame(report, "length", limit), title, task.notes)
    if isinstance(task, TextTask):
        yield _table(_length_frame(report, "response_length", task.max_new_tokens), "Responses")
    elif not task.regression:
        counts = report.rows.groupby("split", sort=False)["answer"].value_counts().unstack("split", fill_value=0)
        counts = counts.reindex(range(task.num_labels), fill_value=0)
        labels = counts.astype(str) + " (" + (100 * counts / counts.sum()).round(1).astype(str) + ")"
        labels.insert(0, "label", task.label_names)
        yield _table(labels, "Labels: rows (%)")


def _kind(task: AnyTask) -> str:
    if isinstance(task, TextTask):
        return "prompts and responses"
    pair = "pairs" if isinstance(task.train.texts[0], tuple) else "single texts"
    return f"{pair}, {'a number' if task.regression else f'{task.num_labels} classes'}"


def _length_frame(report: TaskReport, column: str, limit: int) -> pd.DataFrame:
    lengths = report.rows.groupby("split", sort=False)[column]
    frame = lengths.describe(percentiles=[0.5, 0.95])[["count", "min", "50%", "95%", "max"]].round().astype(int)
    frame.columns = pd.Index(["rows", f"{report.unit} min", "median", "95%", "max"])
    frame[f"over {limit} %"] = lengths.agg(lambda values: f"{100 * (values > limit).mean():.1f}")
    return frame.reset_index()


def _table(frame: pd.DataFrame, title: str, caption: str = "") -> Table:
    first, *others = map(str, frame)
    return filled_table([first], others, frame.itertuples(index=False), title, caption)
