"""Recompute scores and layers of a cell from its rows, at all knobs whose answers were kept: do they fit its record?"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from benchmarks.store.generation_records import GenerationRecord
from benchmarks.store.records import BaseRecord, CellRecord, CurvePoint
from benchmarks.store.stored_results import StoredCell
from consistentee.data.metrics import score, token_match

_ROUNDING = 1e-6

_Fact = tuple[str, ArrayLike, ArrayLike]
"""What was recomputed: its name, the value that the rows give, and the value in the record."""


def faults_of_rows(cell: StoredCell[BaseRecord]) -> Iterator[str]:
    """Yield a sentence for everything in the record of a cell that its rows contradict. Raises UserError."""
    record, rows, validation = cell.record, cell.predictions(), cell.validation()
    try:
        for what, found, recorded in _facts(record, rows, validation):
            if np.shape(found) != np.shape(recorded) or not np.allclose(found, recorded, rtol=0, atol=_ROUNDING):
                yield f"{what}: its rows give {np.asarray(found)}, its record {np.asarray(recorded)}"
    except (KeyError, IndexError, ValueError, TypeError) as error:
        yield f"its rows do not fit its record: {type(error).__name__}: {error}"


def _facts(record: BaseRecord, rows: pd.DataFrame, validation: pd.DataFrame | None) -> Iterator[_Fact]:
    yield "test rows", len(rows), record.test_rows
    if validation is not None:
        yield "validation rows", len(validation), record.validation_rows
    if isinstance(record, GenerationRecord):
        yield from _of_texts(record, rows)
    elif isinstance(record, CellRecord):
        yield from _of_instances(record, rows, validation)


def _of_instances(record: CellRecord, rows: pd.DataFrame, validation: pd.DataFrame | None) -> Iterator[_Fact]:
    layers = rows.filter(regex=r"^layer_prediction_\d+$").to_numpy()  # [rows, exits]
    yield "answers at full depth that the last exit does not give", sum(rows["full_prediction"] != layers[:, -1]), 0
    for number, point in enumerate(record.operating_points):
        name, exits, answers = f"point {number}", rows[f"exit_layer_{number}"], rows[f"prediction_{number}"]
        on_curves = point.test in record.curve_test and point.validation in record.curve_validation
        yield f"{name} lies on both curves", True, on_curves
        yield from _of_curve(name, point.test, rows["label"], answers, exits)
        yield f"{name}, answers that no exit gives", sum(answers != layers[np.arange(len(rows)), exits - 1]), 0
    for number, vertex in enumerate(record.hull):
        name, exits = f"hull {number}", rows.get(f"hull_exit_layer_{number}")
        if exits is not None:
            given = layers[np.arange(len(rows)), exits - 1]
            yield from _of_curve(name, record.curve_test[vertex.place], rows["label"], given, exits)
        if validation is not None:
            point, answers = record.curve_validation[vertex.place], validation[f"hull_prediction_{number}"]
            yield from _of_curve(f"{name}, validation", point, validation["label"], answers)


def _of_curve(
    name: str, point: CurvePoint, labels: pd.Series, answers: ArrayLike, exits: pd.Series | None = None
) -> Iterator[_Fact]:
    for metric, recorded in point.scores.items():
        yield f"{name}, {metric}", score(metric, labels.to_numpy(), np.asarray(answers)), recorded
    if exits is not None:
        yield f"{name}, exits", np.bincount(exits, minlength=len(point.exit_histogram) + 1)[1:], point.exit_histogram


def _of_texts(record: GenerationRecord, rows: pd.DataFrame) -> Iterator[_Fact]:
    """Yield the facts of decoded texts; ROUGE needs the texts themselves, of which rows have the scores."""
    for number, point in enumerate(record.operating_points):
        name, tokens = f"point {number}", list(rows[f"tokens_{number}"])
        for metric, mean in (point.scores | {"rougeL_to_full": point.full_text_score}).items():
            yield f"{name}, {metric}", rows[f"{metric}_{number}"].mean(), mean.value
        yield f"{name}, token match", token_match(list(rows["full_tokens"]), tokens).mean(), point.token_match.value
        if point.speculation is None:
            exits = [layer for layers in rows[f"exit_layers_{number}"] for layer in layers[1:]]
            counts = np.bincount(np.array(exits, dtype=int), minlength=record.num_layers + 1)[1:]
            yield f"{name}, exits", counts, point.exit_histogram
            if exits:
                yield f"{name}, layers", np.mean(exits), point.average_layers
