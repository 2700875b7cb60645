"""Where a run keeps its files, how they are written (whole or not at all), and how they are read back (checked)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from benchmarks.specs.base import BaseCellSpec, folder_name
from benchmarks.specs.schema import validation_sentence
from benchmarks.store.hashes import file_fault, unsealed, write_json
from benchmarks.store.keys import stale_reason
from benchmarks.store.records import RECORDS, AnyRecord, FailureRecord, KeyParts, TimingRecord
from consistentee.errors import UserError
from consistentee.files import clear_leftovers, make_folder, set_aside

if TYPE_CHECKING:
    import pandas as pd

RECORD_FILE = "record.json"
FAILURE_FILE = "failure.json"
TIMING_FILE = "timing.json"
TIMING_FILES = "timing*.json"  # the latest of a group, and earlier ones whose cells could not be timed again
LOG_FILE = "log.txt"
SUITE_FILE = "suite.yaml"
ENVIRONMENT_FILE = "environment.json"
HASHES_FILE = "hashes.json"  # of the files of a saved model, and of published results
CELLS_FILE = "cells.parquet"  # of published results: the records of all cells

SchemaT = TypeVar("SchemaT", bound=BaseModel)


@dataclass
class RunFolder:
    """The layout of a run's output folder.

    Large files of trained models lie once in ``weights``, however many models have them; training keeps the stages that
    methods share in ``stages``; the run that writes here holds ``lock``.
    """

    root: Path

    def __post_init__(self) -> None:
        self.weights = self.root / "artifacts" / "weights"
        self.stages = self.root / "artifacts" / "stages"
        self.timings = self.root / "timings"
        self.lock = self.root / "artifacts" / "run.lock"

    def cell(self, spec: BaseCellSpec) -> Path:
        """Return the folder of a cell: record, predictions, log."""
        return self.root / "cells" / spec.folder

    def model(self, key: str) -> Path:
        """Return the folder of a cell's trained model, which only timing needs."""
        return self.root / "artifacts" / "models" / key

    def timing(self, task: str, backbone: str, seed: int) -> Path:
        """Return the folder of the timings of one (task, backbone, seed)."""
        return self.timings / folder_name(task) / folder_name(backbone) / f"seed{seed}"


@dataclass(frozen=True)
class Fault:
    """A file that is damaged, or made from something else."""

    path: Path
    state: Literal["damaged", "stale"]
    reason: str

    def __str__(self) -> str:
        return f"{self.path} is {self.state} ({self.reason})"

    def set_aside(self) -> str:
        """Move the file, or the folder of a cell whole, out of the way; describe the fault and the new place."""
        whole = self.path.parent if self.path.name == RECORD_FILE else self.path
        return f"{self}; set aside as {set_aside(whole, self.state).name}"


@contextmanager
def only_run(folder: RunFolder) -> Iterator[None]:
    """Keep other runs away from a results folder, and clear away what killed processes leave half-written."""
    make_folder(folder.lock.parent)
    lock = FileLock(folder.lock, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another run is writing to {folder.root}; wait for it, or give another --out") from error
    try:
        clear_leftovers(folder.root)
        yield
    finally:
        clear_leftovers(folder.root)
        lock.release()


def frame_file(name: str) -> str:
    """Return the name of a frame's file."""
    return f"{name}.parquet"


def write_record(path: Path, record: BaseModel, files: Iterable[Path] = ()) -> None:
    """Write a record as JSON, atomically, with its hash and those of files in its folder."""
    write_json(path, record.model_dump_json(indent=1), files)


def write_cell(folder: Path, record: BaseModel, frames: "Mapping[str, pd.DataFrame]") -> None:
    """Write a cell: its frames that have lines, and last the record, with their hashes, which makes the cell done."""
    (folder / RECORD_FILE).unlink(missing_ok=True)  # an old record does not describe the frames written next
    for old in folder.glob("*.parquet"):
        old.unlink()
    files = {folder / frame_file(name): frame for name, frame in frames.items() if len(frame)}
    write_with_frames(folder / RECORD_FILE, record, files)


def write_timing(path: Path, record: TimingRecord, times: "pd.DataFrame") -> None:
    """Write a timing: its times, in a file of the same stem, and the record."""
    path.unlink(missing_ok=True)
    write_with_frames(path, record, {path.with_suffix(".parquet"): times})


def write_with_frames(path: Path, record: BaseModel, frames: "Mapping[Path, pd.DataFrame]") -> None:
    """Write frames, and then the record with their hashes."""
    from benchmarks.store.frames import write_frame  # pandas, which planning needs only where there are results

    for file, frame in frames.items():
        write_frame(file, frame)
    write_record(path, record, frames)


def seal_model(folder: Path, key: str) -> None:
    """Write the hashes of all files of a saved model into its folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    write_json(folder / HASHES_FILE, json.dumps({"key": key}), files)


def keep_timing(folder: Path) -> Path:
    """Rename the latest timing of a group, so that the next one does not replace it; return its new place."""
    number = 1
    while (target := folder / f"timing-{number}.json").exists():
        number += 1
    record, times = parse_record(folder / TIMING_FILE, TimingRecord)[0], folder / "timing.parquet"
    assert record is not None
    times.rename(target.with_suffix(".parquet"))
    write_record(target, record, [target.with_suffix(".parquet")])
    (folder / TIMING_FILE).unlink()
    return target


def read_cell(folder: Path, wanted: KeyParts) -> tuple[AnyRecord | None, Fault | None]:
    """Return a cell's record if it is whole and has the wanted key; or what is wrong with the one there."""
    path = folder / RECORD_FILE
    found, faults = read_whole([path], RECORDS[wanted.kind])
    record = found.get(path)
    if record is not None and (reason := stale_reason(record.key_parts, wanted)):
        return None, Fault(path, "stale", reason)
    return record, next(iter(faults), None)


def read_failure(folder: Path, key: str) -> FailureRecord | None:
    """Return how a cell failed, if it did so with this key."""
    failure, _ = parse_record(folder / FAILURE_FILE, FailureRecord)
    return failure if failure is not None and failure.key == key else None


def read_timings(folder: Path) -> tuple[list[TimingRecord], list[Fault]]:
    """Return the timings of a group that are whole; and what is wrong with the others."""
    timings, faults = read_whole(sorted(folder.glob(TIMING_FILES)), TimingRecord)
    return list(timings.values()), faults


def record_files(root: Path, name: str) -> list[Path]:
    """Return the files of a name in the seeds' folders; what was set aside has another name, and does not count."""
    return sorted(path for path in root.rglob(name) if re.fullmatch(r"seed-?\d+", path.parent.name))


def parse_record(path: Path, schema: type[SchemaT]) -> tuple[SchemaT | None, str | None]:
    """Return (record, None), or (None, what is wrong), or (None, None) if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, None
    except (OSError, UnicodeDecodeError) as error:
        return None, f"unreadable: {error}"
    text, fault = unsealed(text)
    try:
        record = schema.model_validate_json(text)
    except ValidationError as error:
        return None, validation_sentence(error, schema)
    return (record, None) if fault is None else (None, fault)


def read_whole(paths: Iterable[Path], schema: type[SchemaT]) -> tuple[dict[Path, SchemaT], list[Fault]]:
    """Return the records that are whole, with the files they have hashes of, and what is wrong with the others."""
    found, faults = {}, []
    for path in paths:
        record, reason = parse_record(path, schema)
        reason = reason or file_fault(path)
        if reason:
            faults.append(Fault(path, "damaged", reason))
        elif record is not None:
            found[path] = record
    return found, faults
