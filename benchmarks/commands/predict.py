"""Texts, labelled one by one with a saved model: the answer, and at which layer and when it was there."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands.single_model import load_saved
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.data.instances import Text
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule

if TYPE_CHECKING:
    from rich.table import Table


def rows_of(texts: Sequence[str], pair: bool) -> list[Text]:
    """Turn words of the command line into rows: a tab parts the texts of a pair; ``pair`` joins every two texts.

    Raises UserError for an odd number of texts, or a text with more than one tab.
    """
    if pair:
        if len(texts) % 2:
            raise UserError(f"--pair takes an even number of texts, got {len(texts)}")
        return list(zip(texts[::2], texts[1::2], strict=True))
    rows: list[Text] = []
    for text in texts:
        parts = text.split("\t")
        if len(parts) > 2:
            raise UserError(f"a pair has one tab between its texts, got {len(parts) - 1} in {text!r}")
        rows.append((parts[0], parts[1]) if len(parts) == 2 else text)
    if not all(part.strip() for row in rows for part in (row if isinstance(row, tuple) else (row,))):
        raise UserError("an empty text cannot be classified")
    return rows


def predict_texts(folder: Path, rows: Sequence[Text], knob: float | None = None) -> "Table":
    """Classify texts one by one with a saved model: label, probability, exit layer, milliseconds.

    Args:
        folder: written by :func:`train_model`.
        rows: single texts, or pairs.
        knob: of the method; by default the one chosen in training.

    Raises:
        UserError: the folder holds no trained model, or the knob is out of range.
    """
    model, method, knob = load_saved(folder, "classification", knob)
    rule = method.rule(model, knob)
    classify(model, rows[:1], rule, batch_size=1)  # the first call of a process pays for more than itself
    table = plain_table(f"{method.name}, {method.knob.name}={knob:.4g}", "ms: one text alone, tokenising included")
    add_columns(table, "text", *(["value"] if model.num_labels == 1 else ["label", "probability"]))
    add_columns(table, f"exit layer of {model.num_layers}", "ms", numbers=True)
    for row in rows:
        add_row(table, *_prediction_cells(model, row, rule))
    return table


def _prediction_cells(model: MultiExitModel, row: Text, rule: ExitRule) -> list[str]:
    start = time.perf_counter()
    answer = classify(model, [row], rule, batch_size=1)
    milliseconds = 1000 * (time.perf_counter() - start)
    text = " | ".join(row) if isinstance(row, tuple) else row
    layer_and_time = [str(int(answer.exit_layers[0])), f"{milliseconds:.1f}"]
    if model.num_labels == 1:
        return [text, f"{float(answer.predictions[0]):.3f}", *layer_and_time]
    label = int(answer.predictions[0])
    name = model.label_names[label] if model.label_names else str(label)
    probability = float(answer.logits[0].softmax(dim=-1).max())
    return [text, name, f"{probability:.3f}", *layer_and_time]
