"""What reading a results folder gives, whatever the form in which it is stored."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol

from benchmarks.store.folders import Fault
from benchmarks.store.records import RecordT, TimingT

if TYPE_CHECKING:
    import pandas as pd

CELLS_FILE = "cells.parquet"
"""The file that tells the compact form, see :mod:`benchmarks.store.compact`."""


class RowSource(Hashable, Protocol):
    """Where the rows of a cell lie. Nothing is read before it is asked for."""

    @property
    def folder(self) -> str:
        """The cell's folder in a run, below ``cells``."""

    @property
    def place(self) -> Path:
        """What people are told of where the cell lies."""

    @property
    def file(self) -> Path:
        """The file that holds the rows."""

    def predictions(self) -> "pd.DataFrame":
        """Read the table of :func:`benchmarks.store.folders.read_predictions`. Raises UserError if it cannot be."""

    def validation(self) -> "pd.DataFrame | None":
        """Read the table of :func:`benchmarks.store.folders.read_validation`. Raises UserError if it cannot be."""

    def study(self) -> "pd.DataFrame | None":
        """Read the losses of a study of calibration, one line a prompt and threshold; None where there was none."""


@dataclass(frozen=True)
class BaseStoredCell(Generic[RecordT]):
    """A cell's record, and where its rows are."""

    record: RecordT
    rows: RowSource


@dataclass(frozen=True)
class StoredResults(Generic[RecordT, TimingT]):
    """All that a results folder holds.

    Attributes:
        cells: of every cell its record, and where its rows are.
        timings: of every group that was timed.
        timing_files: of each timing, its file in a run, below ``timings``.
        faults: the files that cannot be read.
    """

    cells: list[BaseStoredCell[RecordT]]
    timings: list[TimingT]
    timing_files: list[str]
    faults: list[Fault]
