"""The records of one results folder, grouped as tables and plots need them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.records import CellRecord, Contender, TimingRecord
from benchmarks.harness.storage import Fault, read_all
from consistentee.errors import UserError, unknown_name

_T = TypeVar("_T")

FULL = "full"
ORACLE = "oracle"
MAJORITY = "majority"
REFERENCES = ("static", "random", ORACLE, MAJORITY)
"""Methods that are no competitors but yardsticks: they come last in tables and are grey in plots."""


@dataclass(frozen=True)
class StoredCell:
    """A cell's record, and the folder that also holds its predictions."""

    record: CellRecord
    folder: Path


@dataclass(frozen=True)
class Panel:
    """All cells and timings of one (task, backbone): one table, one panel of the figure."""

    task: str
    backbone: str
    cells: tuple[StoredCell, ...]
    timings: tuple[TimingRecord, ...]
    _derived: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, name: str, derive: Callable[[], _T]) -> _T:
        """Return what was derived from this panel under a name; tables and figures ask for the same things."""
        if name not in self._derived:
            self._derived[name] = derive()
        found: _T = self._derived[name]
        return found

    @property
    def metric(self) -> str:
        """The name of the task's score."""
        return self.cells[0].record.metric

    @property
    def num_layers(self) -> int:
        """Number of layers of the backbone, L."""
        return self.cells[0].record.num_layers

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that were timed."""
        samples = [s for t in self.timings for c in t.contenders for s in c.samples]
        return sorted({sample.batch_size for sample in samples})

    @property
    def methods(self) -> dict[str, str]:
        """The method behind every curve: the full model first, then by name, the references last."""
        methods = {cell.record.label: cell.record.method for cell in self.cells}
        return dict(sorted(methods.items(), key=lambda item: (_rank(item[1]), item[0])))

    @property
    def labels(self) -> list[str]:
        """Curves by name, in the order of :attr:`methods`."""
        return list(self.methods)

    def cells_of(self, label: str, seed: int | None = None) -> list[StoredCell]:
        """Return the cells of one curve, of one seed if given."""
        found = [cell for cell in self.cells if cell.record.label == label]
        return [cell for cell in found if seed is None or cell.record.seed == seed]

    def cells_of_method(self, method: str) -> list[StoredCell]:
        """Return the cells of one method, whatever their label."""
        return [cell for cell in self.cells if cell.record.method == method]

    def stock(self, seed: int) -> Contender | None:
        """Return the stock model's timing for a seed, if there is one."""
        return self._contender(seed, "", None)

    def contender(self, cell: CellRecord, knob: float) -> Contender | None:
        """Return the timing of one operating point, if there is one."""
        return self._contender(cell.seed, cell.key, knob)

    def _contender(self, seed: int, cell_key: str, knob: float | None) -> Contender | None:
        for timing in self.timings:
            for contender in timing.contenders:
                if timing.seed == seed and contender.cell_key == cell_key and knob in (None, contender.knob):
                    return contender
        return None


def panels(cells: Sequence[StoredCell], timings: Sequence[TimingRecord]) -> list[Panel]:
    """Group cells and timings by (task, backbone), in alphabetical order."""
    keys = sorted({(cell.record.task, cell.record.backbone) for cell in cells})
    return [
        Panel(
            task,
            backbone,
            tuple(c for c in cells if (c.record.task, c.record.backbone) == (task, backbone)),
            tuple(t for t in timings if (t.task, t.backbone) == (task, backbone)),
        )
        for task, backbone in keys
    ]


def load_panels(out_dir: Path, labels: Sequence[str] | None = None) -> tuple[list[Panel], list[Fault]]:
    """Read all records of a results folder, and what could not be read.

    Args:
        out_dir: a folder that a run has filled.
        labels: only these curves, by label or method. The full model and the majority class stay in any case, because
            the others are measured against them.

    Raises:
        UserError: the folder holds no record that can be read, or none of a label.
    """
    cells, timings, faults = read_all(out_dir)
    if not cells:
        raise UserError(f"{faults[0]}, and {out_dir} holds no other finished cell; run the suite again")
    stored = [StoredCell(record, folder) for folder, record in cells]
    return panels(stored if labels is None else _narrowed(stored, labels), timings), faults


def _narrowed(cells: Sequence[StoredCell], labels: Sequence[str]) -> list[StoredCell]:
    known = {name for cell in cells for name in (cell.record.label, cell.record.method)}
    for label in labels:
        if label not in known:
            raise unknown_name("method in these results", label, known)
    wanted = {FULL, MAJORITY, *labels}
    return [cell for cell in cells if wanted & {cell.record.label, cell.record.method}]


def _rank(method: str) -> int:
    if method == FULL:
        return 0
    return 2 + REFERENCES.index(method) if method in REFERENCES else 1
