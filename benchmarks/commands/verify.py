"""Check a results folder, of a run or published; name every fault with its file."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands.recompute import faults_of_rows
from benchmarks.commands.submit import SUBMISSION_FILE, faults_of_submission
from benchmarks.kinds import kind_named
from benchmarks.store.folders import (
    ENVIRONMENT_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    RECORD_FILE,
    RunFolder,
    parse_record,
    record_files,
)
from benchmarks.store.hashes import file_fault
from benchmarks.store.records import BaseRecord, FailureRecord
from benchmarks.store.stored_results import StoredCell, is_published, kind_of_results, open_results
from consistentee.errors import UserError
from consistentee.files import OLD, PARTIAL, checked_tensors


def faults_of(root: Path, *, allow_code: bool = False) -> Iterator[str]:
    """Yield a sentence for every fault of a results folder, with the file.

    ``allow_code`` imports the method's file of a submission, and checks its contract. Raises UserError for a folder
    without results.
    """
    patterns = (f".{root.name}.*{PARTIAL}", f".{root.name}{OLD}")
    leftovers = [path for pattern in patterns for path in root.parent.glob(pattern)]
    yield from (f"{path}: left by a publication that was interrupted; publish the run again" for path in leftovers)
    if leftovers and not root.exists():
        return
    kind_name = kind_of_results(root)
    if kind_name is None and not list(root.glob("cells")):
        raise UserError(f"{root} holds no results; give the folder of a run, or published results")
    sealed, remedy = root / ENVIRONMENT_FILE, "the next run writes it again"
    if is_published(root):
        sealed, remedy = root / HASHES_FILE, "publish the run again"
    if fault := file_fault(sealed, sealed=True):
        yield f"{sealed}: {fault}; {remedy}"
    kind = kind_named(kind_name or "classification")
    try:
        results = open_results(root, kind.record, kind.timing)
    except UserError as error:
        yield str(error)
        return
    yield from map(str, results.faults)
    for cell in results.cells:
        yield from (f"{cell.place}: {fault}" for fault in _faults_of_cell(cell))
    if (root / SUBMISSION_FILE).exists():
        yield from faults_of_submission(root, [cell.record for cell in results.cells], allow_code=allow_code)
    if not is_published(root):
        yield from _faults_of_other_files(root)


def _faults_of_cell(cell: StoredCell[BaseRecord]) -> Iterator[str]:
    record = cell.record
    if fault := file_fault(cell.place / RECORD_FILE) if cell.number is None else None:
        yield fault
    if record.key != record.key_parts.key:
        yield "its key is not that of its parts"
    if not cell.folder.endswith(f"/seed{record.seed}"):
        yield f"it lies in the folder of another cell, {cell.folder}"
    try:
        yield from faults_of_rows(cell)
    except UserError as error:
        yield str(error)


def _faults_of_other_files(root: Path) -> Iterator[str]:
    """Yield the faults of files that only a run has: notes of failures, models, stages, leftovers."""
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
