"""Which cells are comparable, and the panels of several folders as one: no two protocols in a panel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.analysis.panels.results import Panel
from benchmarks.specs.schema import canonical_json
from benchmarks.store.records import CellRecord
from consistentee.errors import UserError

_IN_WORDS = {
    "rows": "rows",
    "recipe": "recipe",
    "files": "files of the backbone",
    "engine_version": "version of the engine",
    "training_version": "version of training",
}


class Protocol(NamedTuple):
    """What two cells must have in common, so that their methods are all that differs."""

    task: str
    backbone: str
    seed: int
    rows: str
    recipe: str
    files: str
    engine_version: int
    training_version: int

    @classmethod
    def of(cls, record: CellRecord) -> "Protocol":
        """Return that of a record."""
        parts = record.key_parts
        recipe, files = canonical_json(parts.settings.get("recipe")), canonical_json(parts.backbone)
        versions = (parts.engine_version, parts.training_version)
        return cls(record.task, record.backbone, record.seed, parts.rows, recipe, files, *versions)

    def differences(self, other: "Protocol") -> list[str]:
        """Return, in words, what differs from another of the same task and backbone; seeds may."""
        return [words for name, words in _IN_WORDS.items() if getattr(self, name) != getattr(other, name)]


def merged_panels(found: Mapping[Path, Sequence[Panel]]) -> tuple[list[Panel], list[UserError]]:
    """Put the panels of several folders together: a curve of a seed comes from the first folder that has it.

    Args:
        found: the panels by their folders.

    Returns:
        One panel of each task and backbone, and a line for each that is left out: the first folder that has its task
        followed another protocol.
    """
    merged: dict[tuple[str, str], Panel] = {}
    owners: dict[tuple[str, str], Path] = {}
    left_out = []
    for folder, panels in found.items():
        for panel in panels:
            place = panel.task, panel.backbone
            first, owner = merged.setdefault(place, panel), owners.setdefault(place, folder)
            if owner == folder:
                continue
            if differences := _differences(first, panel):
                words = " and ".join(differences)
                name = f"{panel.task}, {panel.backbone}"
                left_out.append(UserError(f"{name} of {folder} differs from that of {owner} in {words}"))
            else:
                merged[place] = _completed(first, panel)
    return list(merged.values()), left_out


def _differences(first: Panel, second: Panel) -> list[str]:
    protocol = Protocol.of(first.cells[0].record)
    found = [words for cell in second.cells for words in protocol.differences(Protocol.of(cell.record))]
    return list(dict.fromkeys(found))


def _completed(first: Panel, second: Panel) -> Panel:
    """Return the first panel with the curves that only the second one has."""
    curves = {(cell.record.label, cell.record.seed) for cell in first.cells}
    more = [cell for cell in second.cells if (cell.record.label, cell.record.seed) not in curves]
    return Panel(first.task, first.backbone, (*first.cells, *more), (*first.timings, *second.timings))
