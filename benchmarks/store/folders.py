"""Where a run keeps its files, how they are written (whole or not at all), and how they are read back (checked)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from benchmarks.specs.base import BaseCellSpec, folder_name
from benchmarks.store.hashes import file_fault, unsealed, write_json
from benchmarks.store.keys import stale_reason
from benchmarks.store.records import BaseRecord, FailureRecord, KeyParts
from benchmarks.store.timings import TimingRecord
from benchmarks.yaml_files import validation_sentence
from consistentee.errors import UserError
from consistentee.files import clear_leftovers, make_folder, replacing, set_aside

if TYPE_CHECKING:
    import pandas as pd

RECORD_FILE = "record.json"
PREDICTIONS_FILE = "predictions.parquet"
VALIDATION_FILE = "validation.parquet"
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
    methods share in ``stages``; the run that writes here holds ``lock``, and while it plans and writes tables ``plan``.
    """

    root: Path

    def __post_init__(self) -> None:
        self.weights = self.root / "artifacts" / "weights"
        self.stages = self.root / "artifacts" / "stages"
        self.timings = self.root / "timings"
        self.lock = self.root / "artifacts" / "run.lock"
        self.plan = self.root / "artifacts" / "plan"

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
    kind: Literal["damaged", "stale"]
    reason: str

    def __str__(self) -> str:
        return f"{self.path} is {self.kind} ({self.reason})"

    def set_aside(self) -> str:
        """Move the file, or the folder of a cell whole, out of the way; describe the fault and the new place."""
        whole = self.path.parent if self.path.name == RECORD_FILE else self.path
        return f"{self}; set aside as {set_aside(whole, self.kind).name}"


@contextmanager
def only_run(folder: RunFolder) -> Iterator[None]:
    """Keep other runs away from a results folder, and clear away what killed processes leave half-written."""
    make_folder(folder.lock.parent)
    try:
        lock = FileLock(folder.lock, timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"another run is writing to {folder.root}; wait for it, or give another --out") from error
    with lock:
        clear_leftovers(folder.root)
        try:
            yield
        finally:
            clear_leftovers(folder.root)


# ---------------------------------------------------------------------------------------------- writing


def write_record(path: Path, record: BaseModel, files: Iterable[Path] = ()) -> None:
    """Write a record as JSON, atomically, with its hash and those of files in its folder."""
    write_json(path, record.model_dump_json(indent=1), files)


def write_rows(path: Path, columns: "pd.DataFrame") -> None:
    """Write rows of a cell as Parquet, atomically."""
    with replacing(path) as temporary:
        columns.to_parquet(temporary, index=False, write_page_checksum=True)


def write_cell(folder: Path, record: BaseModel, tables: "Mapping[str, pd.DataFrame]") -> None:
    """Write a cell: its rows, and last the record, with their hashes, which makes the cell done."""
    (folder / RECORD_FILE).unlink(missing_ok=True)  # an old record does not describe the rows written next
    for old in folder.glob("*.parquet"):
        old.unlink()
    for name, rows in tables.items():
        write_rows(folder / name, rows)
    write_record(folder / RECORD_FILE, record, [folder / name for name in tables])


def seal_model(folder: Path, key: str) -> None:
    """Write the hashes of all files of a saved model into its folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    write_json(folder / HASHES_FILE, json.dumps({"key": key}), files)


def keep_timing(folder: Path) -> Path:
    """Rename the latest timing of a group, so that the next one does not replace it; return its new place."""
    number = 1
    while (target := folder / f"timing-{number}.json").exists():
        number += 1
    return (folder / TIMING_FILE).rename(target)


# ---------------------------------------------------------------------------------------------- reading


def read_rows(path: Path) -> pa.Table:
    """Read a file of rows that a cell left behind. Raises UserError if it cannot be read."""
    try:
        if fault := file_fault(path.parent / RECORD_FILE, path.name):
            raise ValueError(fault)
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; run the suite again to recompute it") from error


def read_cell(folder: Path, wanted: KeyParts, schema: type[BaseRecord]) -> tuple[BaseRecord | None, Fault | None]:
    """Return a cell's record if it is whole and has the wanted key; or what is wrong with the one there."""
    path = folder / RECORD_FILE
    record, damage = parse_record(path, schema)
    damage = damage or file_fault(path)
    if damage:
        return None, Fault(path, "damaged", damage)
    if record is not None and (reason := stale_reason(record.key_parts, wanted)):
        return None, Fault(path, "stale", reason)
    return record, None


def read_failure(folder: Path, key: str) -> FailureRecord | None:
    """Return how a cell failed, if it did so with this key."""
    failure, _ = parse_record(folder / FAILURE_FILE, FailureRecord)
    return failure if failure is not None and failure.key == key else None


def read_timings(folder: Path) -> tuple[list[TimingRecord], list[Fault]]:
    """Return the timings of a group that are whole; and what is wrong with the others."""
    texts = {path: path.read_text("utf-8", errors="replace") for path in sorted(folder.glob(TIMING_FILES))}
    timings, faults = parse_texts(texts, TimingRecord)
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
    return parse_text(text, schema)


def parse_text(text: str, schema: type[SchemaT]) -> tuple[SchemaT | None, str | None]:
    """Return the record in the text of a JSON file, or what is wrong with it."""
    text, fault = unsealed(text)
    try:
        record = schema.model_validate_json(text)
        return (record, None) if fault is None else (None, fault)
    except ValidationError as error:
        return None, validation_sentence(error, schema)


def parse_texts(texts: Mapping[Path, str], schema: type[SchemaT]) -> tuple[dict[Path, SchemaT], list[Fault]]:
    """Return the records in the texts of JSON files, by their paths, and what is wrong with the others."""
    found, faults = {}, []
    for path, text in texts.items():
        record, reason = parse_text(text, schema)
        if record is None:
            faults.append(Fault(path, "damaged", str(reason)))
        else:
            found[path] = record
    return found, faults
