"""Kind: what the harness needs to know of classification and of generation, as one abstract class."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from benchmarks.specs.base import BaseSuite, Regrouped, TimingSpec
from benchmarks.store.records import AnyRecord
from consistentee.data.tasks import TaskData, TextTask

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.measure.clock import BatchTimes

TaskT = TypeVar("TaskT", bound=TaskData | TextTask)


@dataclass(frozen=True)
class CellRows(Generic[TaskT]):
    """The rows of a cell: a ``task``, capped, whose rows are scored, and one whose rows are trained on."""

    task: TaskT
    training: TaskT

    @property
    def tasks(self) -> list[TaskT]:
        return [self.task] if self.training is self.task else [self.task, self.training]

    @cached_property
    def fingerprint(self) -> str:
        return " ".join(task.fingerprint() for task in self.tasks)


class Evaluation(Protocol):
    """A trained model whose knob has been swept."""

    @property
    def default_knob(self) -> float:
        """The knob of the saved model, unless its user gives another one."""

    @property
    def curve(self) -> "pd.DataFrame":
        """The frame ``curve``, see :mod:`benchmarks.store.frames`."""

    def record(self, **shared: Any) -> AnyRecord:
        """Build the record from the fields that both kinds share and those of this kind."""

    def frames(self) -> "Mapping[str, pd.DataFrame]":
        """Build all frames of the cell but ``training``."""


class Kind(ABC):
    """How cells of a kind are loaded, trained, evaluated and timed.

    Planning uses the class attributes, :meth:`load_rows` and :meth:`backbone_identity`, which never load torch.
    Specifications, methods, models and rows are of the kind's own classes, which its methods name.
    """

    suite: ClassVar[type[BaseSuite]]
    model_file: ClassVar[str]  # of a saved model, which describes its weights
    usual_backbone: ClassVar[str]
    stock_label: ClassVar[str]  # of the stock model in timings
    full_method: ClassVar[str]  # trains the stock model without exits

    @abstractmethod
    def load_rows(self, spec: Any, data_dir: Path | None) -> CellRows[Any]:
        """Load the rows of a cell."""

    @abstractmethod
    def backbone_identity(self, name: str) -> dict[str, object]:
        """Identify a backbone by the hashes of its files, which are downloaded if they are missing."""

    @abstractmethod
    def build_model(self, spec: Any, rows: CellRows[Any]) -> Any:
        """Build the backbone of a cell with untrained exits."""

    @abstractmethod
    def evaluate(self, spec: Any, rows: CellRows[Any], method: Any, model: Any, store: Path | None) -> Evaluation:
        """Sweep the knob of a trained model. ``store`` keeps full-depth passes, which cells with its model share."""

    @abstractmethod
    def load_model(self, folder: Path, loaded: Sequence[Any] = ()) -> Any:
        """Load a trained model; it may share weights with those already loaded. Raises UserError."""

    @abstractmethod
    def stock_model(self, specs: Sequence[Any], models: Sequence[Any]) -> Any:
        """Choose the model that is timed as the stock model among those of some cells."""

    @abstractmethod
    def timed_rows(self, model: Any, spec: Any, rows: CellRows[Any], at_most: int) -> Sequence[Any]:
        """Prepare the first test rows for timing."""

    def timing_options(self, spec: Any, rows: CellRows[Any], protocol: Any) -> dict[str, int]:
        """Collect options of timed passes that the timing record keeps."""
        return {}

    @abstractmethod
    def time_stock(self, model: Any, **options: int) -> "Callable[[Sequence[Any]], BatchTimes]":
        """Build a function that answers a batch with the stock model and returns its times."""

    def regroupings(self, method: Any, protocol: TimingSpec) -> Sequence[Regrouped]:
        """List the settings of regrouping in which a method is timed as well."""
        return protocol.regrouped

    @abstractmethod
    def time_method(
        self, method: Any, model: Any, knob: float, **options: int
    ) -> "Callable[[Sequence[Any]], BatchTimes]":
        """Build a function that answers a batch with early exits and returns its times.

        Rows are in step, unless ``options`` are a setting of regrouping, too.
        """
