"""Texts, labelled one by one with a saved model: the answer, and at which layer and when it was there."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data.instances import Text
from consistentee.deployment.pipeline import Classifier, load_saved
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel

if TYPE_CHECKING:
    from rich.table import Table


def rows_of(texts: Sequence[str], pair: bool) -> list[Text]:
    """Turn words of the command line into rows: a tab parts the texts of a pair; ``pair`` joins every two texts.

    Raises UserError for an odd number of texts, a text with more than one tab, or an empty one.
    """
    if pair and len(texts) % 2:
        raise UserError(f"--pair takes an even number of texts, got {len(texts)}")
    rows: list[Text] = list(zip(texts[::2], texts[1::2], strict=True)) if pair else list(map(_row_of, texts))
    if not all(part.strip() for row in rows for part in (row if isinstance(row, tuple) else (row,))):
        raise UserError("an empty text cannot be classified")
    return rows


def _row_of(text: str) -> Text:
    parts = text.split("\t")
    if len(parts) > 2:
        raise UserError(f"a pair has one tab between its texts, got {len(parts) - 1} in {text!r}")
    return (parts[0], parts[1]) if len(parts) == 2 else text


def predict_texts(
    folder: Path, rows: Sequence[Text], knob: float | None = None, *, allow_code: bool = False
) -> "Table":
    """Classify texts one by one with a saved model: label, probability, exit layer, milliseconds.

    Args:
        folder: written by :func:`benchmarks.commands.one_model.single_model.train_model`.
        rows: single texts, or pairs.
        knob: of the method; by default the one chosen in training.
        allow_code: import the file that the folder names as its method.

    Raises:
        UserError: the folder holds no trained model, or the knob is out of range.
    """
    model, method, knob = load_saved(folder, MultiExitModel, knob, allow_code=allow_code)
    classifier = Classifier(model, method.rule(model, knob))
    classifier(rows[:1])  # the first call of a process pays for more than itself
    table = plain_table(f"{method.name}, {method.knob.name}={knob:.4g}", "ms: one text alone, tokenising included")
    add_columns(table, "text", *(["value"] if model.num_labels == 1 else ["label", "probability"]))
    add_columns(table, f"exit layer of {model.num_layers}", "ms", numbers=True)
    for row in rows:
        add_row(table, *_prediction_cells(classifier, row))
    return table


def _prediction_cells(classifier: Classifier, row: Text) -> list[str]:
    start = time.perf_counter()
    (answer,) = classifier(row)
    milliseconds = 1000 * (time.perf_counter() - start)
    text = " | ".join(row) if isinstance(row, tuple) else row
    label = [answer["label"]] if "label" in answer else []
    return [text, *label, f"{answer['score']:.3f}", str(answer["exit_layer"]), f"{milliseconds:.1f}"]
