"""Turn rows with responses into the three splits of a text task: prompts are made, missing splits cut from train."""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.tasks.cutting import SPLITS, cut_rows, refuse_empty
from benchmarks.tasks.notes import Notes
from benchmarks.tasks.rows import TextRow
from benchmarks.tasks.templates import Template
from benchmarks.tasks.text_spec import TextTaskSpec
from consistentee.data.prompts import Prompt, PromptSplit, TextTask
from consistentee.errors import UserError

BETWEEN_TEMPLATES = "\n----\n"
"""What separates the templates of a task that has several, in :attr:`TextTask.template`."""


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
