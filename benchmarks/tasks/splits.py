"""Turn rows into the three splits of a task: labels become numbers, prompts are made, missing splits are cut.

Sentences about how the rows came about are collected as the notes of the task.
"""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.tasks.rows import Row, Template, TextRow
from benchmarks.tasks.specs import BaseTaskSpec, Cut, TaskSpec, TextTaskSpec
from consistentee.data.instances import Label, Split, TaskData
from consistentee.data.prompts import Prompt, PromptSplit, TextTask
from consistentee.errors import UserError, shown

SPLITS = ("train", "validation", "test")

BETWEEN_TEMPLATES = "\n----\n"
"""What separates the templates of a task that has several, in :attr:`TextTask.template`."""


class Notes:
    """Sentences, in order."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add a sentence, if there is one."""
        if sentence:
            self._sentences.append(sentence.strip().rstrip(".") + ".")

    def add_dropped(self, which: str, dropped: int, rows: int, split: str) -> None:
        """Add how many rows were left out, if any were."""
        if dropped:
            self.add(f"Rows {which} are dropped ({dropped} of {rows} in {split})")

    def add_cut(self, split: str, rows: int, cut: Cut) -> None:
        """Add that a split was cut from train."""
        self.add(f"{split.capitalize()}: {rows} rows cut from train (seed {cut.seed})")

    def add_subsets(self, spec: BaseTaskSpec, sizes: Mapping[str, int]) -> None:
        """Add which splits have fewer rows than the complete data set."""
        incomplete = [name for name, rows in spec.complete_rows.items() if sizes.get(name, rows) < rows]
        for name in incomplete:
            self.add(f"{name.capitalize()} is a subset: {sizes[name]} of {spec.complete_rows[name]} rows")
        if incomplete:
            self.add(spec.subset_notes)

    def add_repeats(self, texts: Mapping[str, Sequence[Hashable]]) -> None:
        """Add how many texts are in train too. They stay in place, as in everybody's scores."""
        seen = set(texts["train"])
        for name in ("validation", "test"):
            repeats = len(seen & set(texts[name]))
            if repeats:
                self.add(f"{repeats} {name} text{' also occurs' if repeats == 1 else 's also occur'} in train")

    def __str__(self) -> str:
        return " ".join(self._sentences)


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


def build_text_task(spec: TextTaskSpec, rows: dict[str, list[TextRow]], source: str) -> TextTask:
    """Return the task made of the ``rows`` of each split that the source has (train at least).

    Raises UserError for a split that is empty, or of which no row has both a prompt and a response.
    """
    refuse_empty(rows, spec.name, source)
    notes = Notes()
    notes.add(spec.notes)
    notes.add_subsets(spec, {name: len(split_rows) for name, split_rows in rows.items()})
    splits = {name: _prompts(spec, split_rows, name, notes) for name, split_rows in rows.items()}
    for name, cut in (("test", spec.test), ("validation", spec.validation)):
        if name not in splits:
            train = splits["train"]
            kept, taken = cut_rows([0] * len(train), cut, name, spec.name)
            splits["train"], splits[name] = train.select(kept), replace(train.select(taken), name=name)
            notes.add_cut(name, len(taken), cut)
    notes.add_repeats({name: splits[name].prompts for name in SPLITS})
    return TextTask(
        name=spec.name,
        version=spec.version,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        metrics=tuple(spec.metrics),
        template=spec.template if isinstance(spec.template, str) else BETWEEN_TEMPLATES.join(spec.template),
        max_prompt_tokens=spec.max_prompt_tokens,
        max_new_tokens=spec.max_new_tokens,
        keep=spec.keep,
        notes=str(notes),
    )


def _prompts(spec: TextTaskSpec, rows: Sequence[TextRow], split: str, notes: Notes) -> PromptSplit:
    """Return the split with its prompts made; rows that lack a part are dropped, and counted."""
    if spec.continuation is not None:
        minimum = spec.continuation.minimum_words
        complete = [halves for row in rows if (halves := _halves(row, minimum)) is not None]
        notes.add_dropped(f"of fewer than {minimum} words", len(rows) - len(complete), len(rows), split)
    else:
        complete = [row for row in rows if row.response]
        notes.add_dropped("without a response", len(rows) - len(complete), len(rows), split)
    templates = spec.templates
    made = [(_prompt(row, templates, spec.cut_field), spec.separator + row.response) for row in complete]
    pairs = [(prompt, reference) for prompt, reference in made if prompt is not None]
    notes.add_dropped("without a text that every prompt needs", len(made) - len(pairs), len(rows), split)
    if not pairs:
        raise UserError(f"task {spec.name!r}: no row of {split} is left. {notes}")
    return PromptSplit(split, [prompt for prompt, _ in pairs], [reference for _, reference in pairs])


def _halves(row: TextRow, minimum_words: int) -> TextRow | None:
    """Return the row with the first half of its words as its field and the others as its response; None if few."""
    ((name, text),) = row.fields.items()
    words = text.split()
    if len(words) < minimum_words:
        return None
    half = len(words) // 2
    return TextRow(row.place, {name: " ".join(words[:half])}, " ".join(words[half:]))


def _prompt(row: TextRow, templates: Sequence[Template], cut_field: str | None) -> Prompt | None:
    """Return the prompt by the first template whose fields the row has all; None if there is no such template."""
    for template in templates:
        if all(row.fields[field] for field in template.fields):
            return template.prompt(row.fields, cut_field)
    return None


def refuse_empty(rows: Mapping[str, Sequence[object]], task: str, source: str) -> None:
    """Raise UserError where a split has no rows."""
    for name, split in rows.items():
        if not split:
            raise UserError(f"task {task!r}: the {name} split is empty ({source})")


def cut_rows(labels: Sequence[Label], cut: Cut, name: str, task: str) -> tuple[list[int], list[int]]:
    """Return the rows that stay in train and those that are taken, drawn at random with the cut's seed.

    Every label keeps its share, and a row in train. Raises UserError where train has too few rows.
    """
    groups: dict[Label, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    sizes = shares({label: len(rows) for label, rows in groups.items()}, cut.size(len(labels)))
    generator = random.Random(cut.seed)
    taken = {row for label in sorted(groups) for row in generator.sample(groups[label], sizes[label])}
    if not taken:
        raise UserError(f"task {task!r}: train has too few rows ({len(labels)}) to cut a {name} split from it")
    return [row for row in range(len(labels)) if row not in taken], sorted(taken)


def shares(counts: dict[Label, int], size: int) -> dict[Label, int]:
    """Divide ``size`` rows among groups in proportion (largest remainders first), leaving each group at least one."""
    total = sum(counts.values())
    exact = {label: size * count / total for label, count in counts.items()}
    whole = {label: math.floor(share) for label, share in exact.items()}
    by_remainder = sorted(counts, key=lambda label: (whole[label] - exact[label], label))
    for label in by_remainder[: size - sum(whole.values())]:
        whole[label] += 1
    return {label: min(share, counts[label] - 1) for label, share in whole.items()}
