"""TaskSpec: what a task's YAML may say. Unknown keys are errors."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from consistentee.errors import UserError

Column = str | int
"""A column by its name, or by its place (the first is 1) where the file has no header."""

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Strict):
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


class Files(Columns):
    """Files of rows: TSV, CSV or JSON lines."""

    format: Literal["tsv", "csv", "jsonl"]
    quoting: Literal["none", "csv"] | None = Field(
        None, description="none: cells are what lies between tabs; csv: cells may be quoted; by default none for tsv"
    )
    header: bool = True
    folder: str = "."
    train: str
    validation: str | None = None
    test: str | None = None

    @property
    def quoted(self) -> bool:
        """Whether cells may be in quotes, with tabs, commas and newlines inside."""
        return (self.quoting or ("csv" if self.format == "csv" else "none")) == "csv"

    @model_validator(mode="after")
    def _columns_can_be_found(self) -> "Files":
        columns = [*self.text_columns, self.label]
        if self.format == "csv" and not self.quoted:
            raise ValueError("format csv always has quoting csv")
        if self.format == "jsonl" and (self.quoting is not None or not self.header):
            raise ValueError("quoting and header do not apply to format jsonl")
        named = self.format == "jsonl" or self.header
        if any(isinstance(column, str) != named for column in columns):
            raise ValueError(f"columns must be {'names' if named else 'numbers, the first is 1'}")
        if any(isinstance(column, int) and column < 1 for column in columns):
            raise ValueError("the first column is number 1")
        return self


class Package(_Strict):
    """A package that ships the files; they lie in ``folder`` of its inner archive."""

    distribution: str = Field(pattern=r"^\w[\w.-]*$")
    version: str = Field(pattern=r"^\w[\w.+!-]*$")
    filename: str = Field(pattern=r"^\w[\w.+-]*\.(whl|tar\.gz)$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int
    folder: str
    inner: str | None = None


class Hub(Columns):
    """A data set of the Hugging Face hub, with the names of its splits."""

    path: str = Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")
    config: str | None = Field(None, pattern=r"^\w[\w.-]*$")
    train: str = "train"
    validation: str | None = None
    test: str | None = None


class Cut(_Strict):
    """How many rows are cut from train for a split that has none of its own."""

    fraction: float = Field(gt=0, lt=1)
    at_most: int = Field(ge=1)
    seed: int

    def size(self, rows: int) -> int:
        """Return how many of ``rows`` rows are cut."""
        return min(round(rows * self.fraction), self.at_most)


class TaskSpec(_Strict):
    """A task: where its rows are, what its labels mean, how it is scored."""

    schema_version: Literal[1]
    name: str = Field(pattern=r"^\w[\w.-]*$")
    version: int = Field(ge=1)
    description: str
    metrics: list[MetricName] = Field(min_length=1)
    target: Literal["class", "number", "sign"] = Field(
        "class", description="sign: two classes, below and above zero; rows at exactly zero are dropped"
    )
    labels: list[str] | None = Field(None, min_length=2, description="class names in order; by default those of train")
    label_values: dict[str, str] = Field(default_factory=dict, description="a label as the file has it: its class name")
    files: Files | None = None
    package: Package | None = None
    hub: Hub | None = None
    validation: Cut = Cut(fraction=0.1, at_most=1000, seed=0)
    test: Cut = Cut(fraction=0.2, at_most=2000, seed=1)
    notes: str = ""
    complete_rows: dict[Literal["train", "validation", "test"], int] = Field(default_factory=dict)
    subset_notes: str = Field("", description="said only where the files hold fewer rows than complete_rows")

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSpec":
        if self.files is None and self.hub is None:
            raise ValueError("give files or hub")
        if self.package is not None and self.files is None:
            raise ValueError("package needs files, which say how to read it")
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


def read_spec(path: Path) -> TaskSpec:
    """Return the task described by a YAML file. Raises UserError that names the file and the key at fault."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TaskSpec.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'the task'}: {e['msg'].lower()}" for e in error.errors()]
        raise UserError(f"{path} is not a task: {'; '.join(faults)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
