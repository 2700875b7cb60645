"""TaskSpec: what the YAML of a classification or regression may say; and reading a YAML of any kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from benchmarks.tasks.base_spec import BaseTaskSpec, Column, FileLayout, HubLayout, RowColumns
from benchmarks.tasks.rows import Row, label_cell, sentence_cell
from benchmarks.tasks.text_spec import TextTaskSpec
from benchmarks.yaml_files import read_fields
from consistentee.errors import UserError, unknown_name

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


class Columns(RowColumns):
    """Where a row keeps its text (one column, or two for a pair) and its label."""

    text: Column | list[Column]
    label: Column

    @property
    def text_columns(self) -> list[Column]:
        """The one or two columns of text."""
        return self.text if isinstance(self.text, list) else [self.text]

    @model_validator(mode="after")
    def _one_or_two_texts(self) -> "Columns":
        if len(self.text_columns) not in (1, 2):
            raise ValueError("text takes one column, or a list of two")
        return self

    @property
    def columns(self) -> list[Column]:
        """The columns of text, and that of the label."""
        return [*self.text_columns, self.label]

    def row(self, place: str, cells: Mapping[Any, Any]) -> Row:
        """Return the row, its texts as they are."""
        texts = [sentence_cell(place, cells, column) for column in self.text_columns]
        label = label_cell(place, cells, self.label)
        return Row(place, texts[0] if len(texts) == 1 else (texts[0], texts[1]), label)


class Files(Columns, FileLayout):
    """Files of rows."""


class Hub(Columns, HubLayout):
    """A data set of the hub."""


class TaskSpec(BaseTaskSpec):
    """A task: where its rows are, what its labels mean, how it is scored."""

    kind: Literal["classification"] = "classification"
    metrics: list[MetricName] = Field(min_length=1)
    target: Literal["class", "number", "sign"] = Field(
        "class", description="sign: two classes, below and above zero; rows at exactly zero are dropped"
    )
    labels: list[str] | None = Field(None, min_length=2, description="class names in order; by default those of train")
    label_values: dict[str, str] = Field(default_factory=dict, description="a label as the file has it: its class name")
    files: Files | None = None
    hub: Hub | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSpec":
        correlations = {"pearson", "spearman"}
        if any((metric in correlations) != (self.target == "number") for metric in self.metrics):
            raise ValueError("pearson and spearman go with target number, the other metrics with classes")
        if self.target == "sign" and (self.labels is None or len(self.labels) != 2):
            raise ValueError("target sign needs two labels: below zero, above zero")
        if self.target == "number" and (self.labels or self.label_values):
            raise ValueError("target number has no labels")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        unknown = set(self.label_values.values()) - set(self.labels or self.label_values.values())
        if unknown:
            raise ValueError(f"label_values names classes that labels lacks: {', '.join(sorted(unknown))}")
        if "f1" in self.metrics and (self.labels is None or len(self.labels) != 2):
            raise ValueError("f1 needs two labels; the second one is the positive class")
        return self


AnyTaskSpec = TaskSpec | TextTaskSpec

_KINDS: dict[str, type[TaskSpec] | type[TextTaskSpec]] = {"classification": TaskSpec, "text": TextTaskSpec}


def read_spec(path: Path) -> AnyTaskSpec:
    """Return the task described by a YAML file. Raises UserError that names the file and the key at fault."""
    fields = read_fields(path, "task")
    kind = str(fields.get("kind", "classification"))
    if kind not in _KINDS:
        raise UserError(f"{path}: {unknown_name('kind', kind, _KINDS)}")
    try:
        return _KINDS[kind].model_validate(fields)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'the task'}: {e['msg'].lower()}" for e in error.errors()]
        raise UserError(f"{path} is not a task: {'; '.join(faults)}") from error
