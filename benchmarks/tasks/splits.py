"""Turn rows into the three splits of a task: labels become numbers, prompts are made, missing splits are cut.

Sentences about how the rows came about are collected as the notes of the task.
"""

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from benchmarks.tasks.specs import AnyTaskSpec, Cut, Row, TaskSpec, TextRow, TextTaskSpec
from consistentee.data.tasks import Label, Prompt, PromptSplit, Split, TaskData, TextTask
from consistentee.errors import UserError, shown

SPLITS = ("train", "validation", "test")

BETWEEN_TEMPLATES = "\n----\n"
"""Separator of the templates of a task that has several, in :attr:`TextTask.template`."""

SplitT = TypeVar("SplitT", Split, PromptSplit)


def build_task(spec: TaskSpec, rows: Mapping[str, Sequence[Row]]) -> TaskData:
    """Return the task made of the ``rows`` of each split that the source has (train at least).

    Raises UserError for a label that is not a number where one is due, and for one that train does not have.
    """
    names, notes = _class_names(spec, rows["train"]), [spec.notes]
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if name in rows:
            learnable = set(splits["train"].labels) if names and name != "train" else None
            splits[name] = _labelled(spec, names, name, rows[name], learnable)
            notes.append(_dropped("rated exactly 0", len(rows[name]) - len(splits[name]), len(rows[name]), name))
    notes += _subsets(spec, splits)
    notes += _cut_missing(spec, splits, lambda split: split.labels if names else [0] * len(split))
    notes += _repeats({name: split.texts for name, split in splits.items()})
    return TaskData(
        name=spec.name,
        version=spec.version,
        **splits,
        label_names=names,
        metrics=tuple(spec.metrics),
        notes=_joined(notes),
        dev_as_test=spec.dev_as_test,
    )


def _class_names(spec: TaskSpec, train: Sequence[Row]) -> tuple[str, ...]:
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


def _labelled(
    spec: TaskSpec, names: Sequence[str], split: str, rows: Sequence[Row], learnable: set[Label] | None
) -> Split:
    """Return a split with its labels as numbers; refuse one that is not ``learnable``, as no training row has it."""
    kept: list[tuple[Row, Label]]
    if spec.target == "class":
        index = {name: number for number, name in enumerate(names)}
        kept = [(row, _class_index(row, index, spec)) for row in rows]
    else:
        kept = [(row, _number(row)) for row in rows]
    if spec.target == "sign":
        kept = [(row, int(value > 0)) for row, value in kept if value != 0]
    for row, label in kept:
        if learnable is not None and label not in learnable:
            raise UserError(f"{row.place}: label {shown(row.label)} occurs in no training row")
    return Split(split, [row.text for row, _ in kept], [label for _, label in kept])


def _class_index(row: Row, index: Mapping[str, int], spec: TaskSpec) -> int:
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


def build_text_task(spec: TextTaskSpec, rows: Mapping[str, Sequence[TextRow]]) -> TextTask:
    """Return the task made of the ``rows`` of each split that the source has (train at least).

    Raises UserError for a split of which no row has both a prompt and a response.
    """
    notes = [spec.notes, *_subsets(spec, rows)]
    splits = {name: _prompts(spec, split_rows, name, notes) for name, split_rows in rows.items()}
    notes += _cut_missing(spec, splits, lambda split: [0] * len(split))
    notes += _repeats({name: split.prompts for name, split in splits.items()})
    return TextTask(
        name=spec.name,
        version=spec.version,
        **splits,
        metrics=tuple(spec.metrics),
        template=BETWEEN_TEMPLATES.join(spec.template),
        max_prompt_tokens=spec.max_prompt_tokens,
        max_new_tokens=spec.max_new_tokens,
        keep=spec.keep,
        notes=_joined(notes),
    )


def _prompts(spec: TextTaskSpec, rows: Sequence[TextRow], split: str, notes: list[str]) -> PromptSplit:
    """Return the split with its prompts made; rows that lack a part are dropped, and counted."""
    if spec.continuation is not None:
        which, minimum = f"of fewer than {spec.continuation.minimum_words} words", spec.continuation.minimum_words
        complete = [halves for row in rows if (halves := _halves(row, minimum)) is not None]
    else:
        which, complete = "without a response", [row for row in rows if row.response]
    notes.append(_dropped(which, len(rows) - len(complete), len(rows), split))
    templates, prompts, references = spec.templates, list[Prompt](), list[str]()
    for row in complete:
        if template := next((one for one in templates if all(row.fields[field] for field in one.fields)), None):
            prompts.append(template.prompt(row.fields, spec.cut_field))
            references.append(spec.separator + row.response)
    notes.append(_dropped("without a text that every prompt needs", len(complete) - len(prompts), len(rows), split))
    if not prompts:
        raise UserError(f"task {spec.name!r}: no row of {split} is left. {_joined(notes)}")
    return PromptSplit(split, prompts, references)


def _halves(row: TextRow, minimum_words: int) -> TextRow | None:
    """Return the row with the first half of its words as its field and the others as its response; None if few."""
    ((name, text),) = row.fields.items()
    words = text.split()
    if len(words) < minimum_words:
        return None
    half = len(words) // 2
    return TextRow({name: " ".join(words[:half])}, " ".join(words[half:]))


def _joined(notes: Sequence[str]) -> str:
    return " ".join(note.strip().rstrip(".") + "." for note in notes if note)


def _dropped(which: str, dropped: int, rows: int, split: str) -> str:
    return f"Rows {which} are dropped ({dropped} of {rows} in {split})" if dropped else ""


def _subsets(spec: AnyTaskSpec, splits: Mapping[str, Sequence[object] | Split]) -> list[str]:
    sizes = {name: len(split) for name, split in splits.items()}
    notes = [
        f"{name.capitalize()} is a subset: {sizes[name]} of {rows} rows"
        for name, rows in spec.complete_rows.items()
        if sizes.get(name, rows) < rows
    ]
    return [*notes, spec.subset_notes] if notes else []


def _repeats(texts: Mapping[str, Sequence[Hashable]]) -> list[str]:
    """Note how many texts are in train too. They stay in place, as in everybody's scores."""
    counts = {name: len(set(texts["train"]) & set(texts[name])) for name in ("validation", "test")}
    return [
        f"{count} {name} text{' also occurs' if count == 1 else 's also occur'} in train"
        for name, count in counts.items()
        if count
    ]


def _cut_missing(
    spec: AnyTaskSpec, splits: dict[str, SplitT], labels_of: Callable[[SplitT], Sequence[Label]]
) -> list[str]:
    notes = []
    for name, cut in (("test", spec.test), ("validation", spec.validation)):
        if name not in splits:
            train = splits["train"]
            kept, taken = cut_rows(labels_of(train), cut, name, spec.name)
            splits["train"], splits[name] = train.select(kept), replace(train.select(taken), name=name)
            notes.append(f"{name.capitalize()}: {len(taken)} rows cut from train (seed {cut.seed})")
    return notes


def cut_rows(labels: Sequence[Label], cut: Cut, name: str, task: str) -> tuple[list[int], list[int]]:
    """Return the rows that stay in train and those that are taken, drawn at random with the cut's seed.

    Every label keeps its share, and a row in train. Raises UserError where train has too few rows.
    """
    groups: dict[Label, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    size = min(round(len(labels) * cut.fraction), cut.at_most)
    sizes = shares({label: len(rows) for label, rows in groups.items()}, size)
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
