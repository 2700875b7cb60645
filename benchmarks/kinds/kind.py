"""Kind: what the harness needs to know of classification and of generation, as one abstract class."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from benchmarks.specs.base import BaseCellSpec, BaseSuite, Regrouped, TimingSpec
from benchmarks.specs.targets import Target
from benchmarks.store.records import BaseRecord
from benchmarks.store.timings import BaseSamples
from consistentee.data.instances import TaskData
from consistentee.data.prompts import TextTask
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

SpecT = TypeVar("SpecT", bound=BaseCellSpec)
TaskT = TypeVar("TaskT", bound=TaskData | TextTask)
MethodT = TypeVar("MethodT")
ModelT = TypeVar("ModelT", bound="nn.Module")
RowT = TypeVar("RowT")
TimesT = TypeVar("TimesT")


@dataclass(frozen=True)
class CellRows(Generic[TaskT]):
    """The rows of a cell: a ``task``, capped, whose rows are scored, and one whose rows are trained on."""

    task: TaskT
    training: TaskT

    @property
    def tasks(self) -> list[TaskT]:
        return [self.task] if self.training is self.task else [self.task, self.training]

    def trained_on(self, recipe: RecipeSettings | TokenRecipeSettings) -> int:
        """Return how many of the training rows a recipe takes."""
        rows = len(self.training.train)
        return min(rows, recipe.max_rows or rows)

    @cached_property
    def fingerprint(self) -> str:
        return " ".join(task.fingerprint() for task in self.tasks)


@dataclass(frozen=True)
class TrainedCell(Generic[SpecT, TaskT, MethodT, ModelT]):
    """A trained model and all that it is evaluated with.

    ``store`` is the folder of full-depth passes and texts; cells with the same model share the former.
    """

    spec: SpecT
    rows: CellRows[TaskT]
    method: MethodT
    model: ModelT
    key: str = ""
    store: Path | None = None


class Chosen(Protocol):
    """A trained model whose knob has been swept, and the operating points chosen on validation rows."""

    @property
    def default_knob(self) -> float:
        """The knob of the saved model, unless its user gives another one."""

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """List (knob, targets, heading -> number for people) of every operating point."""

    def findings(self) -> dict[str, object]:
        """Measure the operating points on test rows; return the fields of the record that are specific to the kind."""

    def tables(self) -> "Mapping[str, pd.DataFrame]":
        """Build the files of rows: file name -> columns."""


class Kind(ABC, Generic[SpecT, TaskT, MethodT, ModelT, RowT, TimesT]):
    """How cells of a kind are loaded, trained, measured and timed.

    Planning uses the class attributes, :meth:`load_rows` and :meth:`backbone_identity`, which never load torch.

    Type parameters: specification of a cell, task, method, model, a row as it is timed, and the times of a batch.
    """

    suite: ClassVar[type[BaseSuite]]
    record: ClassVar[type[BaseRecord]]
    model_file: ClassVar[str]  # of a saved model, which describes its weights
    usual_backbone: ClassVar[str]
    stock_label: ClassVar[str]  # of the stock model in timings

    @abstractmethod
    def load_rows(self, spec: SpecT, data_dir: Path | None) -> CellRows[TaskT]:
        """Load the rows of a cell."""

    @abstractmethod
    def backbone_identity(self, name: str) -> dict[str, object]:
        """Identify a backbone by the hashes of its files, which are downloaded if they are missing."""

    @abstractmethod
    def build_model(self, spec: SpecT, rows: CellRows[TaskT]) -> ModelT:
        """Build the backbone of a cell with untrained exits."""

    @abstractmethod
    def choose(self, cell: TrainedCell[SpecT, TaskT, MethodT, ModelT]) -> Chosen:
        """Sweep the knob of a trained model and choose operating points on validation rows."""

    @abstractmethod
    def load_model(self, folder: Path, loaded: Sequence[ModelT] = ()) -> ModelT:
        """Load a trained model; it may share weights with those already loaded. Raises UserError."""

    @abstractmethod
    def stock_model(self, specs: Sequence[SpecT], models: Sequence[ModelT]) -> ModelT:
        """Choose the model that is timed as the stock model among those of some cells."""

    @abstractmethod
    def timed_rows(self, model: ModelT, spec: SpecT, rows: CellRows[TaskT], at_most: int) -> Sequence[RowT]:
        """Prepare the first test rows for timing."""

    def timing_options(self, spec: SpecT, rows: CellRows[TaskT], protocol: TimingSpec) -> dict[str, int]:
        """Collect options of the contenders that the timing record keeps."""
        return {}

    @abstractmethod
    def time_stock(self, model: ModelT, **options: int) -> Callable[[Sequence[RowT]], TimesT]:
        """Build a function that answers a batch with the stock model and returns its times."""

    def regroupings(self, method: MethodT, protocol: TimingSpec) -> Sequence[Regrouped]:
        """List the settings of regrouping in which a method is timed as well."""
        return protocol.regrouped

    @abstractmethod
    def time_method(
        self, method: MethodT, model: ModelT, knob: float, regrouped: Regrouped | None = None, **options: int
    ) -> Callable[[Sequence[RowT]], TimesT]:
        """Build a function that answers a batch with early exits, regrouped or in step, and returns its times."""

    @abstractmethod
    def average_layers(self, batches: Sequence[TimesT]) -> float:
        """Compute the layers that a timed row or decoded token ran, on average."""

    @abstractmethod
    def samples(
        self, batch_size: int, rows: int, rounds: Sequence[Sequence[TimesT]], in_flight: int | None = None
    ) -> BaseSamples:
        """Build the recorded samples from the times, [rounds][batches]; ``in_flight``: rows under way, if regrouped."""


AnyKind: TypeAlias = Kind[Any, Any, Any, Any, Any, Any]
"""A kind whose name is known only when the program runs."""
