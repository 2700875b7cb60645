"""Turn rows with labels into the three splits of a task: labels become numbers, missing splits are cut from train."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tasks.cutting import SPLITS, cut_rows, refuse_empty
from benchmarks.tasks.notes import Notes
from benchmarks.tasks.rows import Row
from benchmarks.tasks.spec import TaskSpec
from consistentee.data.instances import Label, Split, TaskData
from consistentee.errors import UserError, shown


@dataclass
class _Labelled:
    """Rows with their labels as numbers."""

    rows: list[Row]
    labels: list[Label]

    def select(self, indices: Sequence[int]) -> "_Labelled":
        return _Labelled([self.rows[i] for i in indices], [self.labels[i] for i in indices])


def build_task(spec: TaskSpec, rows: dict[str, list[Row]], source: str) -> TaskData:
    """Return the task made of the ``rows`` of each split that the source has (train at least).

    Raises UserError for an empty split, a label that is not a number where one is due, and a label outside train's.
    """
    refuse_empty(rows, spec.name, source)
    notes = Notes()
    notes.add(spec.notes)
    names = _class_names(spec, rows["train"])
    splits = {name: _labelled(spec, names, split_rows, name, notes) for name, split_rows in rows.items()}
    _check_labels_of_train(names, splits)
    notes.add_subsets(spec, {name: len(split.rows) for name, split in splits.items()})
    for name, cut in (("test", spec.test), ("validation", spec.validation)):
        if name not in splits:
            train = splits["train"]
            kept, taken = cut_rows(train.labels if names else [0] * len(train.labels), cut, name, spec.name)
            splits["train"], splits[name] = train.select(kept), train.select(taken)
            notes.add_cut(name, len(taken), cut)
    notes.add_repeats({name: [row.text for row in split.rows] for name, split in splits.items()})
    parts = {n: Split(n, [row.text for row in splits[n].rows], splits[n].labels) for n in SPLITS}
    return TaskData(
        name=spec.name,
        version=spec.version,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        label_names=names,
        metrics=tuple(spec.metrics),
        notes=str(notes),
    )


def _class_names(spec: TaskSpec, train: Sequence[Row]) -> tuple[str, ...]:
    """Return the class names: those of the YAML, or those of train in numeric or alphabetic order."""
    if spec.target == "number":
        return ()
    if spec.labels is not None:
        return tuple(spec.labels)
    found = {spec.label_values.get(row.label, row.label) for row in train}
    if len(found) < 2:
        raise UserError(f"task {spec.name!r}: train has a single label, {min(found)!r}")
    try:
        return tuple(sorted(found, key=int))
    except ValueError:
        return tuple(sorted(found))


def _labelled(spec: TaskSpec, names: tuple[str, ...], rows: Sequence[Row], split: str, notes: Notes) -> _Labelled:
    if spec.target == "class":
        index = {name: i for i, name in enumerate(names)}
        return _Labelled(list(rows), [_class_index(row, index, spec) for row in rows])
    values = [_number(row) for row in rows]
    if spec.target == "number":
        return _Labelled(list(rows), list(values))
    signed = [(row, int(value > 0)) for row, value in zip(rows, values, strict=True) if value != 0]
    notes.add_dropped("rated exactly 0", len(rows) - len(signed), len(rows), split)
    if not signed:
        raise UserError(f"task {spec.name!r}: every row of {split} is rated 0")
    return _Labelled([row for row, _ in signed], [label for _, label in signed])


def _class_index(row: Row, index: dict[str, int], spec: TaskSpec) -> int:
    name = spec.label_values.get(row.label, row.label)
    if name not in index:
        known = f"one of the labels of task {spec.name!r}" if spec.labels else "a label of train"
        raise UserError(f"{row.place}: label {shown(row.label)} is not {known} ({', '.join(index)})")
    return index[name]


def _number(row: Row) -> float:
    try:
        value = float(row.label)
    except ValueError as error:
        raise UserError(f"{row.place}: label {shown(row.label)} is not a number") from error
    if not math.isfinite(value):
        raise UserError(f"{row.place}: label {shown(row.label)} is not a finite number")
    return value


def _check_labels_of_train(names: tuple[str, ...], splits: dict[str, _Labelled]) -> None:
    """Refuse a class in validation or test that no training row has: nothing could learn it."""
    if not names:
        return
    learnable = set(splits["train"].labels)
    for split in (part for name, part in splits.items() if name != "train"):
        for row, label in zip(split.rows, split.labels, strict=True):
            if label not in learnable:
                raise UserError(f"{row.place}: label {shown(row.label)} occurs in no training row")
