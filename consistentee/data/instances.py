"""TaskData: splits of texts and labels with their metrics."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import PlainValidator

from consistentee.arguments import Positive, TextsOrPairs, check_list, checked
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
