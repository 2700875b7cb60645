"""Turn rows into the three splits of a task: labels become numbers, missing splits are cut from train."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.tasks.readers import Row
from benchmarks.tasks.spec import Cut, TaskSpec
from consistentee.data import Label, Split, TaskData
from consistentee.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass
class _Labelled:
    """Rows with their labels as numbers."""

    rows: list[Row]
    labels: list[Label]

    def select(self, indices: Sequence[int]) -> "_Labelled":
        return _Labelled([self.rows[i] for i in indices], [self.labels[i] for i in indices])


@dataclass
class _Notes:
    """What a reader of the scores must know, sentence by sentence."""

    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        if sentence:
            self.sentences.append(sentence.strip().rstrip(".") + ".")

    def __str__(self) -> str:
        return " ".join(self.sentences)


def build_task(spec: TaskSpec, rows: dict[str, list[Row]], source: str) -> TaskData:
    """Return the task made of the ``rows`` of each split that the source has (train at least).

    Raises UserError for an empty split, a label that is not a number where one is due, and a label outside train's.
    """
    for name, split_rows in rows.items():
        if not split_rows:
            raise UserError(f"task {spec.name!r}: the {name} split is empty ({source})")
    notes = _Notes()
    notes.add(spec.notes)
    names = _class_names(spec, rows["train"])
    splits = {name: _labelled(spec, names, split_rows, name, notes) for name, split_rows in rows.items()}
    _check_labels_of_train(names, splits)
    _note_subsets(spec, splits, notes)
    for name, cut in (("test", spec.test), ("validation", spec.validation)):
        if name not in splits:
            splits["train"], splits[name] = _cut(splits["train"], cut, names, name, spec.name)
            notes.add(f"{name.capitalize()}: {len(splits[name].rows)} rows cut from train (seed {cut.seed})")
    _note_repeats(splits, notes)
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


def _labelled(spec: TaskSpec, names: tuple[str, ...], rows: Sequence[Row], split: str, notes: _Notes) -> _Labelled:
    if spec.target == "class":
        index = {name: i for i, name in enumerate(names)}
        return _Labelled(list(rows), [_class_index(row, index, spec) for row in rows])
    values = [_number(row) for row in rows]
    if spec.target == "number":
        return _Labelled(list(rows), list(values))
    signed = [(row, int(value > 0)) for row, value in zip(rows, values, strict=True) if value != 0]
    if len(signed) < len(rows):
        notes.add(f"Rows rated exactly 0 are dropped ({len(rows) - len(signed)} of {len(rows)} in {split})")
    if not signed:
        raise UserError(f"task {spec.name!r}: every row of {split} is rated 0")
    return _Labelled([row for row, _ in signed], [label for _, label in signed])


def _class_index(row: Row, index: dict[str, int], spec: TaskSpec) -> int:
    name = spec.label_values.get(row.label, row.label)
    if name not in index:
        known = f"one of the labels of task {spec.name!r}" if spec.labels else "a label of train"
        raise UserError(f"{row.place}: label {row.label!r} is not {known} ({', '.join(index)})")
    return index[name]


def _number(row: Row) -> float:
    try:
        value = float(row.label)
    except ValueError as error:
        raise UserError(f"{row.place}: label {row.label!r} is not a number") from error
    if not math.isfinite(value):
        raise UserError(f"{row.place}: label {row.label!r} is not a finite number")
    return value


def _check_labels_of_train(names: tuple[str, ...], splits: dict[str, _Labelled]) -> None:
    """Refuse a class in validation or test that no training row has: nothing could learn it."""
    if not names:
        return
    learnable = set(splits["train"].labels)
    for split in (part for name, part in splits.items() if name != "train"):
        for row, label in zip(split.rows, split.labels, strict=True):
            if label not in learnable:
                raise UserError(f"{row.place}: label {row.label!r} occurs in no training row")


def _cut(train: _Labelled, cut: Cut, names: tuple[str, ...], name: str, task: str) -> tuple[_Labelled, _Labelled]:
    """Return train without the rows that are cut, and these rows; every class keeps its share, and a row in train."""
    size = cut.size(len(train.rows))
    groups: dict[Label, list[int]] = {}
    for row, label in enumerate(train.labels):
        groups.setdefault(label if names else 0, []).append(row)
    shares = _shares({label: len(rows) for label, rows in groups.items()}, size)
    generator = random.Random(cut.seed)
    taken = {row for label in sorted(groups) for row in generator.sample(groups[label], shares[label])}
    if not taken:
        raise UserError(f"task {task!r}: train has too few rows ({len(train.rows)}) to cut a {name} split from it")
    kept = [row for row in range(len(train.rows)) if row not in taken]
    return train.select(kept), train.select(sorted(taken))


def _shares(counts: dict[Label, int], size: int) -> dict[Label, int]:
    """Divide ``size`` rows among groups in proportion (largest remainders first), leaving each group at least one."""
    total = sum(counts.values())
    exact = {label: size * count / total for label, count in counts.items()}
    shares = {label: math.floor(share) for label, share in exact.items()}
    by_remainder = sorted(counts, key=lambda label: (shares[label] - exact[label], label))
    for label in by_remainder[: size - sum(shares.values())]:
        shares[label] += 1
    return {label: min(share, counts[label] - 1) for label, share in shares.items()}


def _note_subsets(spec: TaskSpec, splits: dict[str, _Labelled], notes: _Notes) -> None:
    subset = False
    for name, complete in spec.complete_rows.items():
        rows = len(splits[name].rows) if name in splits else complete
        if rows < complete:
            notes.add(f"{name.capitalize()} is a subset: {rows} of {complete} rows")
            subset = True
    if subset:
        notes.add(spec.subset_notes)


def _note_repeats(splits: dict[str, _Labelled], notes: _Notes) -> None:
    """Say how many texts stand in train too. They are left in place, as everybody's scores have them."""
    seen = {row.text for row in splits["train"].rows}
    for name in ("validation", "test"):
        repeats = len(seen & {row.text for row in splits[name].rows})
        if repeats:
            notes.add(f"{repeats} {name} text{' also occurs' if repeats == 1 else 's also occur'} in train")
