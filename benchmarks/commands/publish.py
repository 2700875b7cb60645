"""Publish a run as the few small files that can be committed, and verify the results folders of both."""

import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pydantic import BaseModel

from benchmarks.analysis.board import write_published_files
from benchmarks.analysis.frames import load_results
from benchmarks.store.folders import (
    CELLS_FILE,
    ENVIRONMENT_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    RECORD_FILE,
    SUITE_FILE,
    RunFolder,
    frame_file,
    parse_record,
    record_files,
)
from benchmarks.store.frames import FRAMES, AnyFrameName, write_published_frame, write_records
from benchmarks.store.hashes import file_fault, write_json
from benchmarks.store.records import AnyRecord, FailureRecord
from benchmarks.store.results_folder import FAILURES_FILE, FORM, TIMINGS_FILE, StoredResults, is_published, open_results
from consistentee.data.metrics import METRICS, score, token_match
from consistentee.errors import UserError
from consistentee.files import OLD, PARTIAL, checked_tensors, replacing

_ALL_FRAMES: tuple[AnyFrameName, ...] = (*FRAMES, "times")


def publish_run(run: Path, out: Path | None = None) -> list[Path]:
    """Write a run's results as a few Parquet files, with their tables and its figure, and return the files.

    Everything is written next to ``out``, by default ``results/NAME`` with the name of the run's folder, and takes its
    place at once. Other files in ``out``, such as notes, are kept.

    Raises UserError if the run cannot be read whole, or ``out`` holds anything else than published results.
    """
    if is_published(run):
        raise UserError(f"{run} is published already; give the folder of a run")
    out, results = out or Path("results") / run.resolve().name, open_results(run)
    if results.faults:
        raise UserError(f"{results.faults[0]}; run the suite again before you publish it")
    if out.exists() and not is_published(out) and any(out.iterdir()):
        raise UserError(f"{out} holds other files than published results; give another --out")
    for leftover in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(leftover)
    with replacing(out) as new:
        if out.exists():
            shutil.copytree(out, new, ignore=shutil.ignore_patterns("*.parquet"))
        new.mkdir(exist_ok=True)
        written = write_results(results, new)
        for file in (run / SUITE_FILE, run / ENVIRONMENT_FILE):
            if file.exists():
                written.append(Path(shutil.copyfile(file, new / file.name)))
        written.append(seal_results(new, written))
        # Everything is read back, because users delete a run once it is published.
        try:
            check_equal(results, open_results(new))
        except AssertionError as error:
            raise AssertionError(f"{out} does not give back what was written; keep the run") from error
        written += write_published_files(load_results(new), new)
    return [out / path.relative_to(new) for path in written]


def write_results(results: StoredResults, root: Path) -> list[Path]:
    """Write all records and frames into a folder, and return the files."""
    records: dict[str, Mapping[str, BaseModel]] = {CELLS_FILE: results.cells, TIMINGS_FILE: results.timings}
    records |= {FAILURES_FILE: results.failures} if results.failures else {}
    for file, found in records.items():
        write_records(root / file, found)
    frames = {frame_file(name): frame for name in _ALL_FRAMES if len(frame := results.frame(name))}
    for file, frame in frames.items():
        write_published_frame(root / file, frame)
    return [root / file for file in (*records, *frames)]


def seal_results(root: Path, files: list[Path]) -> Path:
    """Write the hashes of published files."""
    write_json(root / HASHES_FILE, json.dumps({"form": FORM}), files)
    return root / HASHES_FILE


def check_equal(first: StoredResults, second: StoredResults) -> None:
    """Raise AssertionError unless two folders hold the same records and frames, in the same order."""
    records = [(list(one.cells.items()), list(one.timings.items()), one.failures) for one in (first, second)]
    if records[0] != records[1]:
        raise AssertionError("the records differ")
    for name in _ALL_FRAMES:
        pd.testing.assert_frame_equal(first.frame(name), second.frame(name), check_exact=True, check_dtype=False)


_ROUNDING = 1e-6
_Fact = tuple[str, ArrayLike, ArrayLike]
"""A number at a knob whose answers are kept: its name, the value computed from rows, and the curve's."""


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
    for folder, record in results.cells.items():
        yield from (f"{results.place(folder)}: {fault}" for fault in _faults_of_cell(results, folder, record))
    for file, timing in results.timings.items():
        numbers = set(results.times_of(file).get("timed", []))
        if numbers != set(range(len(timing.timed))):
            yield f"{root}, timing {file}: its times are not those of its {len(timing.timed)} knobs"
    if not is_published(root):
        yield from _faults_of_other_files(root)


def _faults_of_cell(results: StoredResults, folder: str, record: AnyRecord) -> Iterator[str]:
    if not results.published and (fault := file_fault(results.place(folder) / RECORD_FILE)):
        yield fault
    if record.key != record.key_parts.key:
        yield "its key is not that of its parts"
    if not folder.endswith(f"/seed{record.seed}"):
        yield f"it lies in the folder of another cell, {folder}"
    try:
        frames = results.frames_of(folder)
        facts = (_of_texts if record.kind == "generation" else _of_instances)(frames)
        for what, found, recorded in chain([("test rows", len(frames["rows"]), record.test_rows)], facts):
            if np.shape(found) != np.shape(recorded) or not np.allclose(found, recorded, rtol=0, atol=_ROUNDING):
                yield f"{what}: its rows give {np.asarray(found)}, its curve {np.asarray(recorded)}"
    except (UserError, KeyError, IndexError, ValueError, TypeError) as error:
        yield f"its frames do not fit its record: {error}"


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


def _of_instances(frames: Mapping[str, pd.DataFrame]) -> Iterator[_Fact]:
    curve, labels = frames["curve"].set_index("place"), frames["rows"]["label"].to_numpy()
    answers = frames["answers"].pivot(index="row", columns="layer", values="answer").to_numpy()  # [rows, exits]
    for metric in METRICS.keys() & set(curve):
        yield f"full depth, {metric}", score(metric, labels, answers[:, -1]), curve[metric].iloc[-1]
    for place, counts in curve["exit_histogram"].items():
        own, layers = np.asarray(counts), curve.at[place, "layers"]
        tokens_exit = own[-1] == own.sum()  # before their row does
        mean = own @ np.arange(1, len(own) + 1) / own.sum()
        yield f"place {place}, layers by its exits", min(mean, layers) if tokens_exit else mean, layers
    for place, own in frames["exits"].groupby("place") if "exits" in frames else ():
        point, exits = curve.loc[place], own["exit_layer"].to_numpy()
        given, name = answers[own["row"], exits - 1], f"place {place}"
        for metric in METRICS.keys() & set(curve):
            yield f"{name}, {metric}", score(metric, labels, given), point[metric]
        counts = np.bincount(exits, minlength=len(point["exit_histogram"]) + 1)[1:]
        yield f"{name}, exits", counts, point["exit_histogram"]


def _of_texts(frames: Mapping[str, pd.DataFrame]) -> Iterator[_Fact]:
    """Yield the facts of decoded texts; ROUGE needs the texts themselves, of which rows have the scores."""
    curve, texts = frames["curve"].set_index("place"), frames["texts"].set_index("place")
    full, references = texts.loc[[curve.index[-1]]], frames["rows"]["reference_tokens"].sum()
    for place in texts.index.unique():
        point, own, name = curve.loc[place], texts.loc[[place]], f"place {place}"
        for column in set(own) & set(curve) - {"nats"}:
            yield f"{name}, {column}", own[column].mean(), point[column]
        yield f"{name}, token match", token_match(list(full["tokens"]), list(own["tokens"])).mean(), point["match"]
        if references:
            yield f"{name}, nats", own["nats"].sum() / references, point["nats"]
        exits = np.concatenate([layers[1:] for layers in own["exit_layers"]])
        counts = np.bincount(exits, minlength=len(point["exit_histogram"]) + 1)[1:]
        yield f"{name}, exits", counts, point["exit_histogram"]
        if len(exits) and not point.get("passes", np.nan) > 0:
            yield f"{name}, layers", exits.mean(), point["layers"]
