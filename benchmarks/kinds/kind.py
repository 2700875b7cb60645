"""Kinds of rows: what planning needs to know of each, without torch; and the functions that run its cells.

What differs between the kinds once a cell runs lies in :mod:`benchmarks.kinds.classification` and
:mod:`benchmarks.kinds.generation`, under the same names: see :class:`KindFunctions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.kinds.rows import CellRows
from benchmarks.specs.base import BaseSuite, CellSpec, SuiteSpec
from benchmarks.specs.generation import GenerationCellSpec, GenerationSuite
from benchmarks.specs.targets import Target
from benchmarks.store.file_hashes import FileHashes, file_hashes
from benchmarks.store.generation_records import DecodingContender, DecodingTimingRecord, GenerationRecord
from benchmarks.store.records import (
    BaseContender,
    BaseRecord,
    BaseSamples,
    BaseTimingRecord,
    CellRecord,
    Contender,
    TimingRecord,
)
from benchmarks.tasks.loader import load_classification_task, load_text_task
from consistentee.data.instances import TaskData
from consistentee.data.prompts import TextTask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Kind:
    """What planning and reading need to know of a kind. Never loads torch.

    Attributes:
        suite: what its suites say.
        record, timing, contender: schemas of what cells and timings leave behind.
        model_file: the file that says what the weights of a saved model are.
        usual_backbone: where a user names none.
        load_rows: (spec, data_dir) -> the rows of a cell.
        backbone_identity: (name, hashes) -> what identifies a backbone, which is fetched if need be.
    """

    suite: type[BaseSuite]
    record: type[BaseRecord]
    timing: type[BaseTimingRecord]
    contender: type[BaseContender]
    model_file: str
    usual_backbone: str
    load_rows: Callable[[Any, Path | None], CellRows[Any]]
    backbone_identity: Callable[[str, FileHashes], dict[str, object]]


def _instances(spec: CellSpec, data_dir: Path | None) -> CellRows[TaskData]:
    task = load_classification_task(spec.task, data_dir)
    task = task.capped(validation=spec.validation_rows, test=spec.test_rows)
    return CellRows(task, task)


def _encoder_identity(name: str, hashes: FileHashes) -> dict[str, object]:
    from consistentee.backbones.catalog import resolve

    found = resolve(name)
    return {"pooling": found.pooling, "pooler": found.pooler, "files": file_hashes(Path(found.path), hashes)}


def _prompts(spec: GenerationCellSpec, data_dir: Path | None) -> CellRows[TextTask]:
    task = load_text_task(spec.task, data_dir)
    training = task if spec.train_on == spec.task else load_text_task(spec.train_on, data_dir)
    return CellRows(task.capped(validation=spec.validation_prompts, test=spec.test_prompts), training)


def _decoder_identity(name: str, hashes: FileHashes) -> dict[str, object]:
    from consistentee.backbones.catalog import resolve_decoder

    return {"files": file_hashes(Path(resolve_decoder(name)), hashes)}


KINDS: dict[str, Kind] = {
    "classification": Kind(
        suite=SuiteSpec,
        record=CellRecord,
        timing=TimingRecord,
        contender=Contender,
        model_file="multi_exit.json",
        usual_backbone="minilm-l6",
        load_rows=_instances,
        backbone_identity=_encoder_identity,
    ),
    "generation": Kind(
        suite=GenerationSuite,
        record=GenerationRecord,
        timing=DecodingTimingRecord,
        contender=DecodingContender,
        model_file="multi_exit_decoder.json",
        usual_backbone="smollm2-135m",
        load_rows=_prompts,
        backbone_identity=_decoder_identity,
    ),
}


def kind_named(name: str) -> Kind:
    """Return a kind by the name that suites and cells give it."""
    return KINDS[name]


class Chosen(Protocol):
    """A trained model whose knob has been swept, and the operating points that validation rows chose."""

    @property
    def default_knob(self) -> float:
        """The knob that a user of the saved model gets unasked."""

    def columns(self) -> list[tuple[float, list[Target], dict[str, str]]]:
        """Return knob and targets of every operating point, and what people are shown of it: heading -> number."""


class KindFunctions(Protocol):
    """What runs the cells of a kind and takes their times.

    ``spec``, ``rows``, ``method`` and ``model`` are those of the kind; ``done`` is what its ``evaluate`` returns.
    """

    STOCK: str

    def build_model(self, spec: Any, rows: CellRows[Any]) -> Any:
        """Return the backbone of a cell with untrained exits."""

    def choose(
        self, spec: Any, rows: CellRows[Any], method: Any, model: Any, *, key: str = "", store: Path | None = None
    ) -> Chosen:
        """Sweep the knob of a trained model, and choose on validation rows. ``store`` keeps what a cell makes."""

    def evaluate(self, spec: Any, rows: CellRows[Any], chosen: Any) -> Any:
        """Measure what was chosen on test rows."""

    def findings(self, spec: Any, done: Any) -> dict[str, Any]:
        """Return the fields of the record that only this kind has, or counts in a way of its own."""

    def tables(self, done: Any) -> Mapping[str, "pd.DataFrame"]:
        """Return what is kept row by row: name of the file -> columns."""

    def load_model(self, folder: Path, loaded: Sequence[Any] = ()) -> Any:
        """Load a trained model, to lie in memory beside those loaded. Raises UserError if it cannot be loaded."""

    def stock_model(self, specs: Sequence[Any], models: Sequence[Any]) -> Any:
        """Return the one of the models of some cells that stands for the stock model; time does not tell weights."""

    def timed_rows(self, model: Any, spec: Any, rows: CellRows[Any], at_most: int) -> Sequence[Any]:
        """Return the first test rows, as contenders take them."""

    def timing_options(self, spec: Any, rows: CellRows[Any], protocol: Any) -> dict[str, Any]:
        """Return what contenders are told beside their rows; the record keeps it."""

    @property
    def stock_contender(self) -> Callable[..., Callable[[Sequence[Any]], Any]]:
        """(model, **options) -> what answers a batch with the stock model, and says what the clock said."""

    @property
    def contender(self) -> Callable[..., Callable[[Sequence[Any]], Any]]:
        """(method, model, knob, **options) -> what answers a batch with early exits, and says what the clock said."""

    @property
    def regrouping_contenders(self) -> Callable[..., list[tuple[Any, Callable[[Sequence[Any]], Any]]]]:
        """(method, model, knob, protocol, **options) -> settings, and what answers rows under way at each of them."""

    def average_layers(self, batches: Sequence[Any]) -> float:
        """Return the layers that a timed row, or decoded token, ran."""

    def samples(self, batch_size: int, rows: int, rounds: Sequence[Sequence[Any]]) -> BaseSamples:
        """Return what is kept of what the clock said, [rounds][batches]."""


def functions_of(name: str) -> KindFunctions:
    """Return what runs the cells of a kind. Loads torch."""
    if name == "generation":
        from benchmarks.kinds import generation

        return generation
    from benchmarks.kinds import classification

    return classification
