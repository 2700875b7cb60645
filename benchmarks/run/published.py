"""Start a run from the published cells and timings of its suite. Published results are never changed here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.kinds import kind_named
from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group
from benchmarks.store.folders import (
    CALIBRATION_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    VALIDATION_FILE,
    Fault,
    RunFolder,
    read_cell,
    stale_reason,
    timing_folder,
    write_predictions,
    write_record,
)
from benchmarks.store.records import BaseRecord, BaseTimingRecord, KeyParts
from benchmarks.store.stored_results import BaseStoredCell, kind_of_results, open_results
from consistentee.errors import UserError


@dataclass(frozen=True)
class Published:
    """Published results.

    Attributes:
        root: their folder; None if there are none.
        cells: by their folder in a run.
        timings: by their file in a run.
    """

    root: Path | None = None
    cells: dict[str, BaseStoredCell[BaseRecord]] = field(default_factory=dict)
    timings: dict[str, BaseTimingRecord] = field(default_factory=dict)

    def cell(self, spec: BaseCellSpec, wanted: KeyParts) -> BaseStoredCell[BaseRecord] | None:
        """Return a cell if it is published under the wanted key."""
        found = self.cells.get(spec.folder.as_posix())
        return found if found is not None and stale_reason(found.record, wanted) is None else None

    def staleness_lines(self, cells: Iterable[tuple[BaseCellSpec, KeyParts]]) -> list[str]:
        """List why published cells are not used, one line for each reason: a new recipe makes many cells stale."""
        names: dict[str, list[str]] = {}
        for spec, wanted in cells:
            found = self.cells.get(spec.folder.as_posix())
            if found is not None and (reason := stale_reason(found.record, wanted)):
                names.setdefault(reason, []).append(spec.name)
        return [
            f"{first}{f' and {len(others)} more' if others else ''}: published, but {reason}"
            for reason, (first, *others) in names.items()
        ]

    def timings_of(self, group: Group) -> dict[str, BaseTimingRecord]:
        """Return the published timings of a group, by the names of their files."""
        folder = timing_folder(*group).as_posix()
        return {Path(file).name: timing for file, timing in self.timings.items() if file.startswith(f"{folder}/")}


def find_published(suite: BaseSuite, root: Path | None, out: Path) -> Published:
    """Read the published results of a suite.

    Args:
        suite: the suite.
        root: the folder; None reads ``results/SUITE`` if it exists.
        out: the run's own folder, which does not count as published.

    Raises:
        UserError: ``root`` holds no results, or results that cannot be read or are of another kind.
    """
    place = Path("results") / suite.name if root is None else root
    found = kind_of_results(place)
    if place.resolve() == out.resolve() or (found is None and root is None):
        return Published()
    if found is None:
        raise UserError(f"{place} holds no results, published or not; give another --published")
    if found != suite.kind:
        raise UserError(f"{place} holds results of {found}, suite {suite.name!r} is {suite.kind}; rename one of them")
    kind = kind_named(suite.kind)
    results = open_results(place, kind.record, kind.timing)
    return Published(
        place,
        {cell.rows.folder: cell for cell in results.cells},
        dict(zip(results.timing_files, results.timings, strict=True)),
    )


def unpack_cells(
    published: Published,
    cells: Iterable[tuple[BaseCellSpec, KeyParts]],
    folder: RunFolder,
    on_fault: Callable[[Fault], None],
) -> int:
    """Copy published cells that a run's folder lacks into it; return how many were copied.

    The record, which makes a cell done, is written last, so a killed process leaves no half cell.

    Args:
        published: the published results.
        cells: the cells and their key parts.
        folder: the run's folder.
        on_fault: called with every damaged or stale cell that a published one replaces.
    """
    written = 0
    for spec, parts in cells:
        stored = published.cell(spec, parts)
        if stored is None:
            continue
        record, fault = read_cell(folder.cell(spec), parts, type(stored.record))
        if record is not None:
            continue
        if fault:
            on_fault(fault)
        _unpack(stored, folder.cell(spec))
        written += 1
    return written


def _unpack(stored: BaseStoredCell[BaseRecord], place: Path) -> None:
    found = {
        CALIBRATION_FILE: stored.rows.study(),
        VALIDATION_FILE: stored.rows.validation(),
        PREDICTIONS_FILE: stored.rows.predictions(),
    }
    tables = {place / name: rows for name, rows in found.items() if rows is not None}
    for path, rows in tables.items():
        write_predictions(path, rows)
    write_record(place / RECORD_FILE, stored.record, tables)


def unpack_timings(published: Published, cells: Mapping[Group, set[str]], folder: RunFolder, key: str) -> int:
    """Copy published timings that a run's folder lacks into it; return how many were copied.

    Args:
        published: the published results.
        cells: the keys of the cells of every group; timings of none of them are not copied.
        folder: the run's folder.
        key: key of the timing protocol; timings of other protocols are not copied.
    """
    written = 0
    for group, keys in cells.items():
        for name, timing in published.timings_of(group).items():
            path = folder.timing(*group) / name
            timed = {contender.cell_key for contender in timing.contenders}
            if timing.key == key and timed & keys and not path.exists():
                write_record(path, timing)
                written += 1
    return written
