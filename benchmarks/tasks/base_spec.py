"""What the YAML of every task may say, whatever its kind: who it is, where its rows are, how splits are cut."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Column = str | int
"""A column by its name, or by its place (the first is 1) where the file has no header."""


class Strict(BaseModel):
    """A part of a YAML; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RowColumns(Strict, ABC):
    """Which columns a source has that matter to the task, and what its rows are made into."""

    @property
    @abstractmethod
    def columns(self) -> list[Column]:
        """All columns that are read."""

    @abstractmethod
    def row(self, place: str, cells: Mapping[Any, Any]) -> Any:
        """Return the row made of the cells that stand at ``place``. Raises UserError, naming the place."""


class FileLayout(RowColumns):
    """Files of rows: TSV, CSV, JSON lines, or one JSON list."""

    format: Literal["tsv", "csv", "jsonl", "json"]
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

    @property
    def is_json(self) -> bool:
        """Whether rows are JSON objects."""
        return self.format in ("jsonl", "json")

    @model_validator(mode="after")
    def _columns_can_be_found(self) -> "FileLayout":
        if self.format == "csv" and not self.quoted:
            raise ValueError("format csv always has quoting csv")
        if self.is_json and (self.quoting is not None or not self.header):
            raise ValueError(f"quoting and header do not apply to format {self.format}")
        named = self.is_json or self.header
        if any(isinstance(column, str) != named for column in self.columns):
            raise ValueError(f"columns must be {'names' if named else 'numbers, the first is 1'}")
        if any(isinstance(column, int) and column < 1 for column in self.columns):
            raise ValueError("the first column is number 1")
        return self


class Package(Strict):
    """A package that ships the files; they lie in ``folder`` of its inner archive."""

    distribution: str = Field(pattern=r"^\w[\w.-]*$")
    version: str = Field(pattern=r"^\w[\w.+!-]*$")
    filename: str = Field(pattern=r"^\w[\w.+-]*\.(whl|tar\.gz)$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int
    folder: str
    inner: str | None = None
    shared_with: str | None = Field(None, description="the task that unpacks the same files; they are fetched once")


class HubLayout(RowColumns):
    """A data set of the Hugging Face hub, with the names of its splits."""

    path: str = Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")
    config: str | None = Field(None, pattern=r"^\w[\w.-]*$")
    train: str = "train"
    validation: str | None = None
    test: str | None = None


class Cut(Strict):
    """How many rows are cut from train for a split that has none of its own."""

    fraction: float = Field(gt=0, lt=1)
    at_most: int = Field(ge=1)
    seed: int

    def size(self, rows: int) -> int:
        """Return how many of ``rows`` rows are cut."""
        return min(round(rows * self.fraction), self.at_most)


class BaseTaskSpec(Strict):
    """A task of any kind: its name, where its rows are, how missing splits are cut."""

    schema_version: Literal[1]
    name: str = Field(pattern=r"^\w[\w.-]*$")
    version: int = Field(ge=1)
    description: str
    files: FileLayout | None = None
    package: Package | None = None
    hub: HubLayout | None = None
    validation: Cut = Cut(fraction=0.1, at_most=1000, seed=0)
    test: Cut = Cut(fraction=0.2, at_most=2000, seed=1)
    notes: str = ""
    complete_rows: dict[Literal["train", "validation", "test"], int] = Field(default_factory=dict)
    subset_notes: str = Field("", description="said only where the files hold fewer rows than complete_rows")

    @model_validator(mode="after")
    def _rows_can_be_found(self) -> "BaseTaskSpec":
        if self.files is None and self.hub is None:
            raise ValueError("give files or hub")
        if self.package is not None and self.files is None:
            raise ValueError("package needs files, which say how to read it")
        return self
