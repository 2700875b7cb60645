"""Which operating points of a panel stand for a target: :mod:`benchmarks.analysis.panels.select` over stored cells."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from benchmarks.analysis.panels.results import AnyPanel, BaseStoredCell
from benchmarks.analysis.panels.select import choose
from benchmarks.specs.targets import Target, in_order
from benchmarks.store.generation_records import DecodingPoint, GenerationRecord
from benchmarks.store.records import BaseOperatingPoint, BaseRecord, CellRecord, OperatingPoint

_RecordT = TypeVar("_RecordT", bound=BaseRecord)
_PointT = TypeVar("_PointT", bound=BaseOperatingPoint)


@dataclass(frozen=True)
class BaseChoice(Generic[_RecordT, _PointT]):
    """An operating point and the cell that it belongs to."""

    cell: BaseStoredCell[_RecordT]
    point: _PointT

    @property
    def number(self) -> int:
        """The point's place in its record, by which the answers of rows are found."""
        return next(i for i, point in enumerate(self.cell.record.operating_points) if point is self.point)


Choice: TypeAlias = BaseChoice[CellRecord, OperatingPoint]
DecodingChoice: TypeAlias = BaseChoice[GenerationRecord, DecodingPoint]
AnyChoice: TypeAlias = BaseChoice[Any, Any]
"""Of classification, of generation, of any kind."""


def targets_of(cells: Iterable[BaseStoredCell[Any]]) -> list[Target]:
    """Return what the operating points of some cells were chosen for, in the order of tables."""
    return in_order(target for cell in cells for point in cell.record.operating_points for target in point.targets)


def choices_for(panel: AnyPanel, label: str, target: Target) -> list[Any]:
    """Choose one operating point a seed for a target: a list of :class:`BaseChoice`, without seeds that have none."""
    found = [
        choose_point(panel.cells_of(label, seed), target, reference_of(panel, label, seed))
        for seed in panel.seeds_of(label)
    ]
    return [choice for choice in found if choice is not None]


def choose_point(cells: Sequence[BaseStoredCell[Any]], target: Target, reference: float) -> AnyChoice | None:
    """Choose among the operating points of one label and one seed (a grid of parameters), on VALIDATION alone.

    A point may stand for a target that it was not chosen for when its cell was run: what counts is what it does.

    Args:
        cells: of one label and one seed.
        target: what is wanted.
        reference: the score that lost points are counted from, see :func:`reference_of`.
    """
    choices = [BaseChoice(cell, point) for cell in cells for point in cell.record.operating_points]
    if not choices:
        return None
    index = choose(
        target,
        [choice.point.validation.average_layers for choice in choices],
        [choice.point.validation.quality(choice.cell.record.metric) for choice in choices],
        num_layers=cells[0].record.num_layers,
        reference=reference,
    )
    return None if index is None else choices[index]


def reference_of(panel: AnyPanel, label: str, seed: int) -> float:
    """Return the validation score that points are lost against: the full model's of the same seed.

    Where the full model was not run with this seed, it is that of the method's own latest exits, the best of a grid.
    """
    cells = panel.full_cells(seed) or panel.cells_of(label, seed)
    return max(cell.record.curve_validation[-1].quality(cell.record.metric) for cell in cells)
