"""check-task for tasks whose answers are texts: which prompts are cut, which responses cannot be written whole."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.checking.check_report import (
    TRUNCATION_WARNING,
    TaskReport,
    count_words,
    length_table,
    overlap_table,
    repeats_of,
)
from consistentee.data.prompts import Encode, TextTask, cut_prompt
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


def examine_text_task(task: TextTask, report: TaskReport, backbone: str | None) -> None:
    """Measure prompts and responses, in words or in a decoder's tokens, and look at what is cut.

    Raises UserError where there is no such decoder.
    """
    encode = None if backbone is None else _encoder_of(backbone)
    if backbone is not None:
        report.unit = f"tokens of {backbone}"

    def measured(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(count_words(texts) if encode is None else [len(encode(text)) for text in texts])

    for split in (task.train, task.validation, task.test):
        report.lengths[split.name] = measured(split.prompts)
        report.response_lengths[split.name] = measured(split.references)
    _length_findings(task, report)
    if encode is not None:
        _room_findings(task, report, encode)


def _encoder_of(backbone: str) -> Encode:
    from consistentee.backbones.catalog import resolve_decoder
    from consistentee.backbones.pretrained import read_tokenizer

    tokenizer = read_tokenizer(resolve_decoder(backbone))
    return lambda text: tokenizer(text).input_ids


def _length_findings(task: TextTask, report: TaskReport) -> None:
    """Count in words too: a word is a token at least."""
    for lengths, limit, limited, consequence in (
        (report.lengths, task.max_prompt_tokens, "prompts", f"they are cut, and the {task.keep} stays"),
        (report.response_lengths, task.max_new_tokens, "responses", "they cannot be written to the end"),
    ):
        for name, values in lengths.items():
            share = float((values > limit).mean())
            if share > TRUNCATION_WARNING:
                report.warnings.append(
                    f"{100 * share:.0f}% of the {limited} of {name} have more than {limit} {report.unit}: {consequence}"
                )


def _room_findings(task: TextTask, report: TaskReport, encode: Encode) -> None:
    """Look for prompts of which so much may not be cut that they do not fit."""
    for split in (task.train, task.validation, task.test):
        too_long = np.flatnonzero(report.lengths[split.name] > task.max_prompt_tokens)
        for row in map(int, too_long):
            try:
                cut_prompt(encode, split.prompts[row], task.max_prompt_tokens, task.keep)
            except UserError as error:
                report.errors.append(f"row {row + 1} of {split.name}: {error}")
                break


def text_tables(task: TextTask, report: TaskReport) -> Iterator["Table"]:
    """Yield the tables for a terminal: prompts, responses, what splits share."""
    title = f"{task.name}, version {task.version}: prompts and responses, scored by {', '.join(task.metrics)}"
    yield length_table(
        title,
        task.notes,
        report.unit,
        lengths=report.lengths,
        limit=task.max_prompt_tokens,
        repeats=repeats_of(report),
    )
    yield length_table(
        "Responses", "", report.unit, lengths=report.response_lengths, limit=task.max_new_tokens, repeats={}
    )
    yield overlap_table(report)
