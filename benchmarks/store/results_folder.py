"""Read a results folder. Folders of runs and published ones are read alike: they hold the same records and frames.

A run has a folder for each cell (``record.json`` and a Parquet file a frame) and for each timing. A published folder
has ``cells.parquet``, ``timings.parquet`` and ``failures.parquet`` with a line for each record, and one file a frame
with the lines of all cells.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel

from benchmarks.specs.base import BaseSuite
from benchmarks.store.folders import (
    CELLS_FILE,
    FAILURE_FILE,
    HASHES_FILE,
    RECORD_FILE,
    TIMING_FILES,
    Fault,
    frame_file,
    parse_record,
    read_whole,
    record_files,
)
from benchmarks.store.frames import FRAMES, AnyFrameName, FrameName, read_frame, read_records
from benchmarks.store.hashes import file_fault
from benchmarks.store.records import RECORDS, AnyRecord, FailureRecord, TimingRecord
from consistentee.errors import UserError
from consistentee.versions import TaskKind

TIMINGS_FILE, FAILURES_FILE = "timings.parquet", "failures.parquet"
FORM = 4  # of published folders, in the file of their hashes; raised when columns change
CELL_COLUMN, TIMING_COLUMN = "cell", "timing"
"""In front of the frames of several cells and timings: the number of the record, from 0."""


@dataclass(frozen=True, eq=False)
class StoredResults:
    """All that a results folder holds, and the files that cannot be read. Frames are read when they are asked for.

    Attributes:
        cells: records by their folder in a run, below ``cells``; a cell's number is its place.
        timings: by their file in a run, below ``timings``. The latest of a group comes first: earlier ones may be of
            another protocol.
        failures: why other cells have no record, by their folder.
    """

    root: Path
    kind: TaskKind
    cells: dict[str, AnyRecord]
    timings: dict[str, TimingRecord]
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def published(self) -> bool:
        """Whether the folder was written by publishing, and not by a run."""
        return is_published(self.root)

    def place(self, folder: str) -> Path:
        """Return where a cell lies: in a run its folder; in published results the file, and its folder in the run."""
        return self.root / (CELLS_FILE if self.published else "cells") / folder

    def frame(self, name: AnyFrameName, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
        """Read a frame of all cells (or timings), in their order; of a published one only ``columns``.

        It has a column ``cell`` (or ``timing``). Raises UserError if it cannot be read.
        """
        number = TIMING_COLUMN if name == "times" else CELL_COLUMN
        if self.published:
            path = self.root / frame_file(name)
            if not path.exists():
                return pd.DataFrame(columns=[number])
            return _frame_as_of(path, path.stat().st_mtime_ns, columns and (number, *columns))
        files = [self.root / "cells" / folder / frame_file(name) for folder in self.cells]
        if name == "times":
            files = [(self.root / "timings" / file).with_suffix(".parquet") for file in self.timings]
        frames = {place: read_frame(file) for place, file in enumerate(files) if file.exists()}
        for place, frame in frames.items():
            frame.insert(0, number, np.int32(place))
        return pd.concat(frames.values(), ignore_index=True) if frames else pd.DataFrame(columns=[number])

    def frame_of(self, folder: str, name: FrameName) -> pd.DataFrame:
        """Read a frame of one cell as its folder in a run has it; empty if it has none. Raises UserError."""
        if not self.published:
            file = self.root / "cells" / folder / frame_file(name)
            return read_frame(file) if file.exists() else pd.DataFrame()
        return _lines_of(self.frame(name), CELL_COLUMN, list(self.cells).index(folder))

    def frames_of(self, folder: str) -> dict[str, pd.DataFrame]:
        """Read all frames of one cell. Raises UserError if they cannot be read."""
        own = {name: self.frame_of(folder, name) for name in FRAMES}
        return {name: frame for name, frame in own.items() if len(frame)}

    def times_of(self, file: str) -> pd.DataFrame:
        return _lines_of(self.frame("times"), TIMING_COLUMN, list(self.timings).index(file))


def is_published(root: Path) -> bool:
    """Check whether a results folder was written by publishing, and not by a run."""
    return (root / CELLS_FILE).exists()


def kind_of_results(root: Path) -> TaskKind | None:
    """Return the kind of a folder's records; None if none is whole. Raises UserError, see :func:`open_results`."""
    if is_published(root):
        with _readable(root):
            kind: TaskKind = pq.read_table(root / CELLS_FILE, columns=["kind"])["kind"][0].as_py()
            return kind
    found = (parse_record(path, _AnyRecord)[0] for path in record_files(root / "cells", RECORD_FILE))
    return next((record.kind for record in found if record), None)


class _AnyRecord(BaseModel):
    kind: TaskKind


def open_results(root: Path) -> StoredResults:
    """Read the records of a results folder; frames are read when they are asked for. Nothing is moved or changed.

    Raises UserError if the folder holds no record at all or is none, and if it was published and is damaged.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; give a folder of results")
    kind = kind_of_results(root) or "classification"
    if is_published(root):
        with _readable(root):
            if fault := file_fault(root / HASHES_FILE, sealed=True):
                raise ValueError(fault)
            if json.loads((root / HASHES_FILE).read_text(encoding="utf-8"))["form"] != FORM:
                raise ValueError("another version published it, in another form")
            return StoredResults(
                root,
                kind,
                read_records(root / CELLS_FILE, RECORDS[kind]),
                _latest_first(read_records(root / TIMINGS_FILE, TimingRecord)),
                read_records(root / FAILURES_FILE, FailureRecord) if (root / FAILURES_FILE).exists() else {},
            )
    cells, faults = read_whole(record_files(root / "cells", RECORD_FILE), RECORDS[kind])
    timings, more_faults = read_whole(record_files(root / "timings", TIMING_FILES), TimingRecord)
    notes, _ = read_whole(record_files(root / "cells", FAILURE_FILE), FailureRecord)
    if not cells and not faults:
        inside = [str(place) for place in sorted(root.glob("*")) if is_published(place) or (place / "cells").is_dir()]
        hint = f"these do: {', '.join(inside)}" if inside else f"`consistentee run SUITE --out {root}` makes some"
        raise UserError(f"{root} holds no results; {hint}")
    by_folder = {path.parent.relative_to(root / "cells").as_posix(): record for path, record in cells.items()}
    failures = {path.parent.relative_to(root / "cells").as_posix(): note for path, note in notes.items()}
    return StoredResults(
        root,
        kind,
        by_folder,
        _latest_first({path.relative_to(root / "timings").as_posix(): timing for path, timing in timings.items()}),
        {folder: note for folder, note in failures.items() if folder not in by_folder},
        [*faults, *more_faults],
    )


def published_results(suite: BaseSuite, root: Path | None, out: Path) -> StoredResults | None:
    """Read the published results that a run starts from: those in ``root``, or in ``results/SUITE``, but not ``out``.

    Raises UserError if ``root`` holds no results, or if they cannot be read or are of another kind.
    """
    place = Path("results") / suite.name if root is None else root
    if place.resolve() == out.resolve():
        return None
    if checked_kind(suite, place, "rename one of them") is None:
        if root is None:
            return None
        raise UserError(f"{place} holds no results, published or not; give another --published")
    return open_results(place)


def checked_kind(suite: BaseSuite, place: Path, remedy: str) -> TaskKind | None:
    """Return the kind of the results in a folder; None if it holds none. Raises UserError if it is not the suite's."""
    found = kind_of_results(place)
    if found not in (None, suite.kind):
        raise UserError(f"{place} holds results of {found}, suite {suite.name!r} is {suite.kind}; {remedy}")
    return found


def _latest_first(timings: dict[str, TimingRecord]) -> dict[str, TimingRecord]:
    files = sorted(timings, key=lambda file: timings[file].finished_at, reverse=True)
    return {file: timings[file] for file in sorted(files, key=lambda file: Path(file).parent)}


def _lines_of(frame: pd.DataFrame, column: str, number: int) -> pd.DataFrame:
    first, last = np.searchsorted(frame[column].to_numpy(), [number, number + 1])  # they rise
    return frame.iloc[first:last].drop(columns=column).reset_index(drop=True).dropna(axis="columns", how="all")


@lru_cache(maxsize=16)
def _frame_as_of(path: Path, changed: int, columns: tuple[str, ...] | None) -> pd.DataFrame:
    """Keep a frame until its file has ``changed``: a folder may be published again while it is open."""
    return read_frame(path, None if columns is None else list(columns))


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Turn everything that can be wrong with a published folder into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{root} cannot be read as published results: {reason}; publish the run again") from error
