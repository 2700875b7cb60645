"""The records of one results folder, grouped as tables and plots need them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, cast

from benchmarks.specs.targets import Speedups
from benchmarks.store.folders import Fault
from benchmarks.store.records import (
    BaseContender,
    BaseRecord,
    BaseTimingRecord,
    CellRecord,
    Contender,
    TimingRecord,
)
from benchmarks.store.stored_results import BaseStoredCell, kind_of_results, open_results
from consistentee.errors import UserError, unknown_name

_T = TypeVar("_T")
_RecordT = TypeVar("_RecordT", bound=BaseRecord)
_TimingT = TypeVar("_TimingT", bound=BaseTimingRecord)
_ContenderT = TypeVar("_ContenderT", bound=BaseContender)

CORE_METHOD = "consistentee"
"""Its variants' names begin with it."""
FULL = "full"
ORACLE = "oracle"
MAJORITY = "majority"
REFERENCES = ("static", "random", ORACLE, MAJORITY)
"""Methods that are no competitors but yardsticks: they come last in tables and are grey in plots."""


@dataclass(frozen=True)
class BasePanel(Generic[_RecordT, _TimingT, _ContenderT]):
    """All cells and timings of one (task, backbone): one table, one panel of the figure."""

    task: str
    backbone: str
    cells: tuple[BaseStoredCell[_RecordT], ...]
    timings: tuple[_TimingT, ...]
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
    def speedups(self) -> Speedups:
        """The budgets at which methods are compared, as shares of the full cost's inverse: 2 is half of the layers."""
        return self.cells[0].record.compared_at

    @property
    def full_label(self) -> str | None:
        """The curve of the full model; None where it was not run."""
        return next(iter(labels_of_role(self.methods, FULL)), None)

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that were timed, rows in step."""
        samples = [sample for contender in self.contenders for sample in contender.samples]
        return sorted({sample.batch_size for sample in samples if not sample.regroups})

    @property
    def contenders(self) -> list[_ContenderT]:
        """All that was timed, of all seeds."""
        return [cast(_ContenderT, contender) for timing in self.timings for contender in timing.contenders]

    def full_cells(self, seed: int | None = None) -> list[BaseStoredCell[_RecordT]]:
        """Return the cells of the full model, of one seed if given; none where it was not run."""
        return [] if self.full_label is None else self.cells_of(self.full_label, seed)

    @property
    def methods(self) -> dict[str, str]:
        """The method behind every curve: the full model first, then by name, the references last."""
        methods = {cell.record.label: cell.record.method for cell in self.cells}
        return dict(sorted(methods.items(), key=lambda item: (_rank(item[1]), item[0])))

    @property
    def labels(self) -> list[str]:
        """Curves by name, in the order of :attr:`methods`."""
        return list(self.methods)

    def cells_of(self, label: str, seed: int | None = None) -> list[BaseStoredCell[_RecordT]]:
        """Return the cells of one curve, of one seed if given."""
        found = [cell for cell in self.cells if cell.record.label == label]
        return [cell for cell in found if seed is None or cell.record.seed == seed]

    def seeds_of(self, label: str | None = None) -> list[int]:
        """Return the seeds of one curve, of all curves if none is given."""
        return sorted({cell.record.seed for cell in self.cells if label in (None, cell.record.label)})

    def cells_of_method(self, method: str) -> list[BaseStoredCell[_RecordT]]:
        """Return the cells of one method, whatever their label."""
        return [cell for cell in self.cells if cell.record.method == method]

    def stock(self, seed: int, beside: _ContenderT | None = None) -> _ContenderT | None:
        """Return the stock model's timing for a seed, if there is one: with ``beside``, the one of its rounds."""
        timings = self.timings
        if beside is not None:
            timings = tuple(timing for timing in timings if any(one is beside for one in timing.contenders))
        return _contender(timings, seed, "", None)

    def contender(self, cell: _RecordT, knob: float) -> _ContenderT | None:
        """Return the timing of one operating point, if there is one."""
        return _contender(self.timings, cell.seed, cell.key, knob)


StoredCell: TypeAlias = BaseStoredCell[CellRecord]
Panel: TypeAlias = BasePanel[CellRecord, TimingRecord, Contender]
"""Of classification, as :data:`StoredCell`."""

AnyPanel: TypeAlias = BasePanel[Any, Any, Any]
"""Of any kind."""


def _contender(timings: Iterable[BaseTimingRecord], seed: int, cell_key: str, knob: float | None) -> Any:
    for timing in timings:
        for contender in timing.contenders:
            if timing.seed == seed and contender.cell_key == cell_key and knob in (None, contender.knob):
                return contender
    return None


def panels(
    cells: Sequence[BaseStoredCell[_RecordT]], timings: Sequence[_TimingT]
) -> list[BasePanel[_RecordT, _TimingT, Any]]:
    """Group cells and timings by (task, backbone), in alphabetical order."""
    keys = sorted({(cell.record.task, cell.record.backbone) for cell in cells})
    return [
        BasePanel(
            task,
            backbone,
            tuple(c for c in cells if (c.record.task, c.record.backbone) == (task, backbone)),
            tuple(t for t in timings if (t.task, t.backbone) == (task, backbone)),
        )
        for task, backbone in keys
    ]


def load_panels(
    out_dir: Path, labels: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> tuple[list[Panel], list[Fault]]:
    """Read all records of a results folder, and what could not be read.

    Args:
        out_dir: a folder that a run has filled.
        labels: only these curves; a method's name that is no label here means all of the method. The full model and
            the majority class stay in any case, because the others are measured against them.
        tasks: only these tasks.

    Raises:
        UserError: the folder holds no record that can be read, or none of a label or task.
    """
    refuse_generation(out_dir)
    return load_panels_of(CellRecord, TimingRecord, out_dir, labels, tasks)


def refuse_generation(out_dir: Path) -> None:
    """Raise UserError if a results folder is of generation, which has tables and figures of its own."""
    if kind_of_results(out_dir) == "generation":
        raise UserError(f"{out_dir} holds results of generation; see them with `consistentee table` and `plot`")


def load_panels_of(
    record: type[_RecordT],
    timing: type[_TimingT],
    out_dir: Path,
    labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[list[BasePanel[_RecordT, _TimingT, Any]], list[Fault]]:
    """Read records of some kind, as :func:`load_panels` does those of classification."""
    found = open_results(out_dir, record, timing)
    if not found.cells:
        raise UserError(f"{found.faults[0]}, and {out_dir} holds no other finished cell; run the suite again")
    cells = found.cells if labels is None else _narrowed(found.cells, labels)
    return panels(cells if tasks is None else _of_tasks(cells, tasks), found.timings), found.faults


def _of_tasks(cells: Sequence[BaseStoredCell[_RecordT]], tasks: Sequence[str]) -> list[BaseStoredCell[_RecordT]]:
    known = {cell.record.task for cell in cells}
    for task in tasks:
        if task not in known:
            raise unknown_name("task in these results", task, known)
    return [cell for cell in cells if cell.record.task in tasks]


def _narrowed(cells: Sequence[BaseStoredCell[_RecordT]], labels: Sequence[str]) -> list[BaseStoredCell[_RecordT]]:
    known = {name for cell in cells for name in (cell.record.label, cell.record.method)}
    for label in labels:
        if label not in known:
            raise unknown_name("method in these results", label, known)
    named = {cell.record.label for cell in cells}.intersection(labels)
    wanted = {FULL, MAJORITY, *labels} - named
    return [
        cell
        for cell in cells
        if cell.record.label in named or wanted & {role_of(cell.record.method), cell.record.method}
    ]


def role_of(method: str) -> str:
    """Return the name by which references are known, whatever their rows are: ``token-static`` is ``static``."""
    role = method.removeprefix("token-")
    return role if role in (FULL, *REFERENCES) else method


def labels_of_role(methods: Mapping[str, str], role: str) -> list[str]:
    """Return the labels of a role, of the methods of all labels.

    Of several, of recipes of their own, the one under its method's own name is first: the suite's own.
    """
    found = [label for label, method in methods.items() if role_of(method) == role]
    return sorted(found, key=lambda label: (label != methods[label], label))


def _rank(method: str) -> int:
    role = role_of(method)
    if role == FULL:
        return 0
    return 2 + REFERENCES.index(role) if role in REFERENCES else 1
