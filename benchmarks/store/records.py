"""The schemas of what is one fact a cell, or one a timing. What has many lines a cell is in its frames.

See :mod:`benchmarks.store.frames` for the frames: rows, curve, answers, exits, texts, training and times.
"""

from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from benchmarks.specs.schema import Strict, hash_value
from consistentee.versions import TaskKind


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not known, which a column does not tell from what another version did not record."""
    known = {name: _known(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in known.items() if value not in (None, {})}


Environment: TypeAlias = Annotated[dict[str, object], AfterValidator(_known)]
"""A description by :mod:`benchmarks.measure.environment`. A name has one type, because it is a column of a struct."""


class KeyParts(Strict):
    """All that a cell's results depend on, see :func:`benchmarks.store.keys.key_parts`."""

    kind: TaskKind
    settings: dict[str, object] = Field(description="of the cell; those at their defaults are left out")
    rows: str = Field(description="hash of the rows that were used")
    backbone: dict[str, object] = Field(description="hashes of its files, and how it is pooled")
    method_version: int | str = Field(description="of its class; or a hash, where the method is a user's file")
    engine_version: int
    training_version: int

    @cached_property
    def key(self) -> str:
        return hash_value(self.model_dump(mode="json"))


class BaseRecord(Strict):
    """The fields that records of both kinds share: what was run, on how many rows, when and where."""

    schema_version: Literal[2] = 2
    key: str
    key_parts: KeyParts
    code_hash: str | None = Field(None, description="of the project's code that ran, never compared")
    task: str
    task_version: int
    metric: str
    task_notes: str
    dev_as_test: bool = Field(False, description="the public development set is the test split")
    backbone: str
    method: str
    label: str = Field(description="name of the curve this cell belongs to in tables and plots")
    parameters: dict[str, object]
    knob_name: str
    seed: int
    num_layers: int = Field(description="layers of the stock model, L: budgets are shares of it")
    train_rows: int
    validation_rows: int
    test_rows: int
    train_seconds: float
    trained_rows: float | None = Field(
        None, description="rows that training passed through the backbone, see consistentee.training.loop.TrainingLog"
    )
    training_precision: Literal["float32", "bfloat16"] | None = Field(None, description="of layers, never compared")
    command: str
    environment: Environment
    finished_at: str


class CellRecord(BaseRecord):
    """One cell of classification (task, backbone, method with parameters, seed)."""

    kind: Literal["classification"] = "classification"
    exit_network: str | None = Field(None, description="kind of the classifiers of exits before layer L")


class GenerationRecord(BaseRecord):
    """One cell of generation. ``validation_rows`` and ``test_rows`` are prompts."""

    kind: Literal["generation"] = "generation"
    train_task: str
    exit_layers: list[int]
    closing_layers: int = Field(0, description="the last of each exit's layers, which every token runs")
    max_prompt_tokens: int
    max_new_tokens: int
    kv: str = Field(description="how skipped layers get keys and values")
    truncated_prompts: int = Field(description="test prompts that were cut to max_prompt_tokens")


AnyRecord: TypeAlias = CellRecord | GenerationRecord
RECORDS: dict[TaskKind, type[AnyRecord]] = {"classification": CellRecord, "generation": GenerationRecord}


class FailureRecord(Strict):
    """Why a cell has no record: it failed, or its method is not defined for its task."""

    schema_version: Literal[1] = 1
    key: str
    error: str = Field(description="one line")
    refused: bool = Field(description="the method is not defined for the task: nothing to retry")
    may_pass: bool = Field(
        default=False, description="a signal or an OSError ended it for the first time: the next run tries it once more"
    )
    traceback: str
    failed_at: str


class TimedKnob(Strict):
    """A knob of a cell, or the stock model, in a timing."""

    cell_key: str = Field(description="empty for the stock model")
    label: str
    knob: float | None
    average_layers: float = Field(description="over the timed rows")


class TimingRecord(Strict):
    """Knobs of the cells of one (task, backbone, seed) and the stock model, timed in interleaved rounds."""

    schema_version: Literal[2] = 2
    kind: TaskKind = "classification"
    key: str = Field(description="hash of the protocol and its code; what was timed is in timed")
    task: str
    backbone: str
    seed: int
    rounds: int
    max_new_tokens: int | None = Field(None, description="of a text, in generation")
    timed: list[TimedKnob] = Field(description="in the order of the numbers in the frame of times")
    environment_before: Environment
    environment_after: Environment
    command: str
    finished_at: str

    @property
    def total_seconds(self) -> float:
        """Seconds from the first pass to the last, untimed ones included."""
        began = datetime.fromisoformat(str(self.environment_before["time"]))
        return (datetime.fromisoformat(self.finished_at) - began).total_seconds()
