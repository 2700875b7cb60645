"""Check a results folder, of a run or published; name every fault with its file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from benchmarks.store.folders import (
    ENVIRONMENT_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    RECORD_FILE,
    RunFolder,
    parse_record,
    record_files,
)
from benchmarks.store.generation_records import GenerationRecord
from benchmarks.store.hashes import file_fault
from benchmarks.store.records import BaseRecord, CellRecord, CurvePoint, FailureRecord
from benchmarks.store.stored_results import StoredCell, is_published, open_results
from consistentee.data.metrics import score, token_match
from consistentee.errors import UserError
from consistentee.files import OLD, PARTIAL, checked_tensors

_ROUNDING = 1e-6
_Fact = tuple[str, ArrayLike, ArrayLike]


def faults_of(root: Path) -> Iterator[str]:
    """Yield a sentence for every fault of a results folder, with the file.

    Raises UserError for a folder without results.
    """
    patterns = (f".{root.name}.*{PARTIAL}", f".{root.name}{OLD}")
    leftovers = [path for pattern in patterns for path in root.parent.glob(pattern)]
    yield from (f"{path}: left by a publication that was interrupted; publish the run again" for path in leftovers)
    if leftovers and not root.exists():
        return
    if not is_published(root) and not (root / "cells").is_dir():
        raise UserError(f"{root} holds no results; give the folder of a run, or published results")
    sealed, remedy = root / ENVIRONMENT_FILE, "the next run writes it again"
    if is_published(root):
        sealed, remedy = root / HASHES_FILE, "publish the run again"
    if fault := file_fault(sealed, sealed=True):
        yield f"{sealed}: {fault}; {remedy}"
    try:
        results = open_results(root)
    except UserError as error:
        yield str(error)
        return
    yield from map(str, results.faults)
    for cell in results.cells:
        yield from (f"{cell.place}: {fault}" for fault in _faults_of_cell(cell))
    if not is_published(root):
        yield from _faults_of_other_files(root)


def _faults_of_cell(cell: StoredCell) -> Iterator[str]:
    record = cell.record
    if fault := file_fault(cell.place / RECORD_FILE) if cell.number is None else None:
        yield fault
    if record.key != record.key_parts.key:
        yield "its key is not that of its parts"
    if not cell.folder.endswith(f"/seed{record.seed}"):
        yield f"it lies in the folder of another cell, {cell.folder}"
    try:
        for what, found, recorded in _facts(record, cell.predictions(), cell.validation()):
            if np.shape(found) != np.shape(recorded) or not np.allclose(found, recorded, rtol=0, atol=_ROUNDING):
                yield f"{what}: its rows give {np.asarray(found)}, its record {np.asarray(recorded)}"
    except (UserError, KeyError, IndexError, ValueError, TypeError) as error:
        yield f"its rows do not fit its record: {error}"


def _faults_of_other_files(root: Path) -> Iterator[str]:
    for path in record_files(root, FAILURE_FILE):
        _, reason = parse_record(path, FailureRecord)
        if reason:
            yield f"{path}: {reason}"
    folder = RunFolder(root)
    for path in sorted(folder.stages.glob("*.safetensors")):
        try:
            checked_tensors(path)
        except UserError as error:
            yield str(error)
    for place in sorted(folder.model("").glob("*")):
        if "." not in place.name and (fault := file_fault(place / HASHES_FILE, sealed=True)):
            yield f"{place}: {fault}"
    for path in root.rglob(".*"):
        if path.name.endswith((PARTIAL, OLD)):
            yield f"{path}: left by a process that was killed; the next run removes it"


# ---------------------------------------------------------------------------------------------- records and rows


def _facts(record: BaseRecord, rows: pd.DataFrame, validation: pd.DataFrame | None) -> Iterator[_Fact]:
    """Compute again what rows can tell, at all knobs whose answers were kept: its name, the value, and the recorded."""
    yield "test rows", len(rows), record.test_rows
    if validation is not None:
        yield "validation rows", len(validation), record.validation_rows
    if isinstance(record, GenerationRecord):
        yield from _of_texts(record, rows)
    elif isinstance(record, CellRecord):
        yield from _of_instances(record, rows, validation)


def _of_instances(record: CellRecord, rows: pd.DataFrame, validation: pd.DataFrame | None) -> Iterator[_Fact]:
    layers = rows.filter(regex=r"^layer_prediction_\d+$").to_numpy()  # [rows, exits]

    def of_exits(name: str, point: CurvePoint, exits: pd.Series) -> Iterator[_Fact]:
        return _of_curve(name, point, rows["label"], layers[np.arange(len(rows)), exits - 1], exits)

    for number, point in enumerate(record.operating_points):
        name = f"point {number}"
        on_curves = point.test in record.curve_test and point.validation in record.curve_validation
        yield f"{name} lies on both curves", True, on_curves
        yield from of_exits(name, point.test, rows[f"exit_layer_{number}"])
    for number, vertex in enumerate(record.hull):
        name, exits = f"hull {number}", rows.get(f"hull_exit_layer_{number}")
        if exits is not None:
            yield from of_exits(name, record.curve_test[vertex.place], exits)
        if validation is not None:
            curve, answers = record.curve_validation[vertex.place], validation[f"hull_prediction_{number}"]
            yield from _of_curve(f"{name}, validation", curve, validation["label"], answers, None)


def _of_curve(
    name: str, point: CurvePoint, labels: pd.Series, answers: ArrayLike, exits: pd.Series | None
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
