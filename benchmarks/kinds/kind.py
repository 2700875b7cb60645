"""What differs between a suite of classification and one of generation; all else of a run is the same for both."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.store.file_hashes import FileHashes, file_hashes
from benchmarks.store.generation_records import DecodingTimingRecord, GenerationRecord
from benchmarks.store.generation_spec import GenerationCellSpec
from benchmarks.store.records import BaseRecord, BaseTimingRecord, CellRecord, TimingRecord
from benchmarks.store.spec import CellSpec
from benchmarks.tasks.loader import load_classification_task, load_text_task
from consistentee.data.instances import TaskData
from consistentee.errors import UserError
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, AnyMethod

if TYPE_CHECKING:
    from consistentee.data.prompts import TextTask


class Kind(ABC):
    """How the cells of a suite get their rows, run, and are written. Never loads torch unless it is told to run.

    Class attributes:
        record, timing: schemas of what cells and timings leave behind.
        method_group: entry points of the methods.
        model_file: the file that says what the weights of a saved model are.
    """

    record: ClassVar[type[BaseRecord]]
    timing: ClassVar[type[BaseTimingRecord]]
    method_group: ClassVar[str]
    model_file: ClassVar[str]

    @abstractmethod
    def load_task(self, spec: Any, data_dir: Path | None) -> Any:
        """Return the rows of a cell, capped; their ``fingerprint()`` is a hash of them."""

    @abstractmethod
    def backbone_identity(self, name: str, hashes: FileHashes) -> dict[str, object]:
        """Return what identifies a backbone. Fetches it if need be."""

    @abstractmethod
    def check_method(self, method: AnyMethod, task: Any) -> None:
        """Raise UserError if a method is not defined for a task, as :meth:`load_task` returns it."""

    @abstractmethod
    def cell_runner(self) -> Callable[..., Any]:
        """Return the function (spec, parts, task, folder, *, command) that runs a cell and writes its folder."""

    @abstractmethod
    def timing_runner(self) -> Callable[..., Any]:
        """Return the function (cells, task, protocol, folder, *, command) that takes the times of a group."""


class Classification(Kind):
    """Rows are instances."""

    record = CellRecord
    timing = TimingRecord
    method_group = ENTRY_POINT_GROUP
    model_file = "multi_exit.json"

    def load_task(self, spec: CellSpec, data_dir: Path | None) -> TaskData:
        """Return the task; its training rows are capped by the recipe."""
        task = load_classification_task(spec.task, data_dir)
        return task.capped(validation=spec.validation_rows, test=spec.test_rows)

    def backbone_identity(self, name: str, hashes: FileHashes) -> dict[str, object]:
        """Hashes of its files, and how it is pooled."""
        from consistentee.backbones.catalog import resolve

        found = resolve(name)
        return {"pooling": found.pooling, "pooler": found.pooler, "files": file_hashes(Path(found.path), hashes)}

    def check_method(self, method: AnyMethod, task: TaskData) -> None:
        """Ask the method."""
        method.check_task(task)

    def cell_runner(self) -> Callable[..., Any]:
        """Return :func:`benchmarks.kinds.classification.run_cell`."""
        from benchmarks.kinds.classification import run_cell

        return run_cell

    def timing_runner(self) -> Callable[..., Any]:
        """Return :func:`benchmarks.kinds.classification_timing.run_timing`."""
        from benchmarks.kinds.classification_timing import run_timing

        return run_timing


@dataclass(frozen=True)
class TextRows:
    """The rows of a cell of generation.

    Attributes:
        task: whose validation and test prompts are decoded, capped.
        training: whose training rows are trained on.
    """

    task: "TextTask"
    training: "TextTask"

    def fingerprint(self) -> str:
        """Return a hash of both."""
        return f"{self.task.fingerprint()} {self.training.fingerprint()}"


class Generation(Kind):
    """Rows are tokens being decoded."""

    record = GenerationRecord
    timing = DecodingTimingRecord
    method_group = TOKEN_ENTRY_POINT_GROUP
    model_file = "multi_exit_decoder.json"

    def load_task(self, spec: GenerationCellSpec, data_dir: Path | None) -> TextRows:
        """Return the task that is decoded and the one that is trained on."""
        task = load_text_task(spec.task, data_dir)
        training = task if spec.train_on == spec.task else load_text_task(spec.train_on, data_dir)
        return TextRows(task.capped(validation=spec.validation_prompts, test=spec.test_prompts), training)

    def backbone_identity(self, name: str, hashes: FileHashes) -> dict[str, object]:
        """Hashes of its files."""
        from consistentee.backbones.catalog import resolve_decoder

        return {"files": file_hashes(Path(resolve_decoder(name)), hashes)}

    def check_method(self, method: AnyMethod, task: TextRows) -> None:
        """Ask the method about both tasks."""
        from consistentee.methods.token_method import TokenMethod

        if not isinstance(method, TokenMethod):
            raise UserError(f"{type(method).__name__} is a method of classification, where no token leaves early")
        method.check_task(task.task)
        method.check_task(task.training)

    def cell_runner(self) -> Callable[..., Any]:
        """Return :func:`benchmarks.kinds.generation.run_generation_cell`."""
        from benchmarks.kinds.generation import run_generation_cell

        return run_generation_cell

    def timing_runner(self) -> Callable[..., Any]:
        """Return :func:`benchmarks.kinds.generation_timing.run_decoding_timing`."""
        from benchmarks.kinds.generation_timing import run_decoding_timing

        return run_decoding_timing


_KINDS: dict[str, Kind] = {"classification": Classification(), "generation": Generation()}


def kind_named(name: str) -> Kind:
    """Return a kind by the name that suites and cells give it."""
    return _KINDS[name]
