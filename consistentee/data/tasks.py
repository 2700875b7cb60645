"""Loaded tasks of both kinds: TaskData, with labels, and TextTask, with prompts that can be cut; and their splits."""

import hashlib
import json
import math
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import PlainValidator

from consistentee.arguments import Positive, Texts, TextsOrPairs, check_list, checked
from consistentee.errors import UserError, shown

Text = str | tuple[str, str]
"""A single sentence, or a pair."""

Label = int | float
"""A class index, or the target of a regression."""


class LoadedSplit:
    """Base of both kinds of splits: a dataclass with two columns. Raises UserError when empty or ragged.

    Class attributes:
        columns: names of the columns.
    """

    columns: ClassVar[tuple[str, str]]
    name: str

    def __post_init__(self) -> None:
        counts = [len(getattr(self, column)) for column in self.columns]
        if counts[0] == 0:
            raise UserError(f"the {self.name} split is empty")
        if counts[0] != counts[1]:
            first, second = (f"{count} {column}" for count, column in zip(counts, self.columns, strict=True))
            raise UserError(f"the {self.name} split has {first} but {second}")

    def __len__(self) -> int:
        return len(getattr(self, self.columns[0]))

    def select(self, rows: Sequence[int]) -> Self:
        """Return the given rows, in the given order."""
        chosen = {column: [getattr(self, column)[i] for i in rows] for column in self.columns}
        return replace(self, **chosen)  # type: ignore[type-var]

    @checked
    def capped(self, max_rows: Positive | None, seed: int) -> Self:
        """Return at most ``max_rows`` rows, drawn at random with ``seed``, in their original order."""
        if max_rows is None or max_rows >= len(self):
            return self
        return self.select(sorted(random.Random(seed).sample(range(len(self)), max_rows)))


@checked
@dataclass(frozen=True)
class Split(LoadedSplit):
    """Rows of one split: ``texts[i]`` has ``labels[i]``. Raises UserError when empty or ragged."""

    columns = ("texts", "labels")
    name: str
    texts: TextsOrPairs
    labels: Annotated[Sequence[Label], PlainValidator(check_list)]


class LoadedTask:
    """Base of both kinds of tasks: three splits and metrics. Raises UserError without a metric."""

    name: str
    version: int
    train: Any
    validation: Any
    test: Any
    metrics: tuple[str, ...]
    dev_as_test: bool = False

    def __post_init__(self) -> None:
        if not self.metrics:
            raise UserError(f"task {self.name!r} names no metric")

    @property
    def metric(self) -> str:
        """The name of the task's score."""
        return self.metrics[0]

    def capped(self, train: int | None = None, validation: int | None = None, test: int | None = None) -> Self:
        """Return the task with at most so many rows a split; the rows drawn never depend on a method's seed."""
        capped = {
            "train": self.train.capped(train, seed=0),
            "validation": self.validation.capped(validation, seed=1),
            "test": self.test.capped(test, seed=2),
        }
        return replace(self, **capped)  # type: ignore[type-var]

    def _hash(self, settings: Sequence[object], rows_of: Callable[[Any], Iterable[object]]) -> str:
        digest = hashlib.sha256(json.dumps([self.name, self.version, *settings]).encode())
        for split in (self.train, self.validation, self.test):
            for row in rows_of(split):
                digest.update(json.dumps(row).encode())
            digest.update(split.name.encode())
        return digest.hexdigest()


@checked
@dataclass(frozen=True)
class TaskData(LoadedTask):
    """A task, loaded: three splits, the names of its classes and its metrics.

    Attributes:
        name: the task's name, as in its YAML.
        version: raised whenever the meaning of the task changes, so that scores are never mixed.
        train, validation, test: the splits. Knobs are chosen on validation; test is only reported.
        label_names: class names, in the order of the label indices; empty for a regression.
        metrics: names of metrics (see :mod:`consistentee.data.metrics`); the first one is the task's score.
        notes: notes for readers of the scores (a subset, dropped rows, ...).
        dev_as_test: the public development set is the test split.

    Raises UserError without a metric, and for a label that is no class, or no number.
    """

    name: str
    version: int
    train: Split
    validation: Split
    test: Split
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    notes: str = ""
    dev_as_test: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = "a number" if self.regression else f"one of {self.num_labels} classes"
        for split in (self.train, self.validation, self.test):
            for row, label in enumerate(split.labels, start=1):
                if not self._is_label(label):
                    raise UserError(
                        f"task {self.name!r}: row {row} of {split.name} has label {shown(label)}, which is not {wanted}"
                    )

    def _is_label(self, label: object) -> bool:
        if self.regression:
            return isinstance(label, Label) and not math.isnan(label)
        return isinstance(label, int) and 0 <= label < self.num_labels

    @property
    def regression(self) -> bool:
        """Whether the target is a number rather than a class."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Number of outputs of a classifier for this task (1 for a regression)."""
        return len(self.label_names) or 1

    def fingerprint(self) -> str:
        """Hash of everything that a score depends on: texts, labels, class names, metrics, version."""
        settings = [self.label_names, self.metrics]
        return self._hash(settings, lambda split: zip(split.texts, split.labels, strict=True))


# Tasks whose answers are texts

Keep = Literal["start", "end"]
"""The end of a long text that is kept."""

ChatTemplate = Literal["auto", "never"]
"""Whether prompts are put into the tokenizer's chat template, as messages of a user, where it has one."""

Encode = Callable[[str], Sequence[int]]
"""Convert a prompt to its tokens, with special tokens."""

_PIECE = re.compile(r"\s*\S{1,24}")  # where a body may be cut: between words, and within very long ones


class Prompt(str):
    """A prompt ``before + body + after`` whose body may be cut: an article, but not the instruction around it."""

    before: str
    body: str
    after: str

    @checked
    def __new__(cls, before: str, body: str, after: str = "") -> "Prompt":
        prompt = super().__new__(cls, before + body + after)
        prompt.before, prompt.body, prompt.after = before, body, after
        return prompt

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]  # str's own has one argument
        return self.before, self.body, self.after


def cut_prompt(encode: Encode, prompt: str, max_prompt_tokens: int | None, keep: Keep = "start") -> str:
    """Return ``prompt`` if its tokens fit, else the prompt with a shorter body.

    Keeps as many whole words of the body as fit, from its start or up to its end. A plain string is all body. None
    is no limit. Raises UserError if not one word of the body fits.
    """
    if max_prompt_tokens is None or len(encode(prompt)) <= max_prompt_tokens:
        return prompt
    whole = prompt if isinstance(prompt, Prompt) else Prompt("", prompt)
    # A piece has at least one token, so more pieces cannot fit.
    pieces = _PIECE.findall(whole.body)
    pieces = pieces[:max_prompt_tokens] if keep == "start" else pieces[-max_prompt_tokens:]

    def of_pieces(count: int) -> Prompt:
        kept = pieces[:count] if keep == "start" else pieces[len(pieces) - count :]
        return Prompt(whole.before, "".join(kept).strip(), whole.after)

    counts = range(1, len(pieces) + 1)
    fitting = bisect_right(counts, max_prompt_tokens, key=lambda count: len(encode(of_pieces(count))))
    if fitting == 0:
        raise UserError(
            f"a prompt may have {max_prompt_tokens} tokens, but {f'{whole.before}...{whole.after}'[:80]!r} leaves no "
            "room for a word of the text to be cut; raise max_prompt_tokens"
        )
    return of_pieces(fitting)


def fit_prompt(encode: Encode, prompt: str, max_prompt_tokens: int | None, keep: Keep = "start") -> list[int]:
    """Tokenise ``prompt``, cut as by :func:`cut_prompt`, with the same arguments and errors."""
    return list(encode(cut_prompt(encode, prompt, max_prompt_tokens, keep)))


@checked
@dataclass(frozen=True)
class PromptSplit(LoadedSplit):
    """Rows of one split: ``references[i]`` is a text that should follow ``prompts[i]``.

    A reference begins with the separator (a space or a line break), so that ``prompt + reference`` is the text that a
    model learns. Raises UserError when empty, ragged, or with an empty prompt.
    """

    columns = ("prompts", "references")
    name: str
    prompts: Texts
    references: Texts

    def __post_init__(self) -> None:
        super().__post_init__()
        for row, prompt in enumerate(self.prompts, start=1):
            if not prompt.strip():
                raise UserError(f"row {row} of the {self.name} split has an empty prompt")

    def cut(
        self, encode: Encode, max_prompt_tokens: int | None, keep: Keep = "start"
    ) -> tuple["PromptSplit", list[bool]]:
        """Return the split with prompts that fit, and which of them were cut; see :func:`cut_prompt`."""
        fitting = [cut_prompt(encode, prompt, max_prompt_tokens, keep) for prompt in self.prompts]
        return replace(self, prompts=fitting), [a is not b for a, b in zip(fitting, self.prompts, strict=True)]


@checked
@dataclass(frozen=True)
class TextTask(LoadedTask):
    """A loaded task whose answers are texts: three splits, metrics and lengths.

    Attributes:
        name, version, train, validation, test, metrics: as those of :class:`consistentee.TaskData`.
        template: the template of the prompts, for readers.
        max_prompt_tokens: longer prompts are cut by :func:`cut_prompt`.
        max_new_tokens: maximum length of a text.
        keep: the end of a cut body that is kept.
        notes: notes for readers of the scores (a subset, rows that were dropped, ...).

    Raises UserError without a metric, and for a limit below 1.
    """

    name: str
    version: int
    train: PromptSplit
    validation: PromptSplit
    test: PromptSplit
    metrics: tuple[str, ...]
    template: str
    max_prompt_tokens: Positive
    max_new_tokens: Positive
    keep: Keep = "start"
    notes: str = ""

    def fingerprint(self) -> str:
        """Hash of everything that a score depends on: prompts, how they are cut, references, metrics, version."""
        limits = [self.max_prompt_tokens, self.max_new_tokens, self.keep]
        return self._hash([self.metrics, limits], _rows_with_parts)


def _rows_with_parts(split: PromptSplit) -> Iterator[tuple[object, str]]:
    for prompt, reference in zip(split.prompts, split.references, strict=True):
        yield (prompt.__getnewargs__() if isinstance(prompt, Prompt) else prompt), reference
