"""TextTaskSpec: what the YAML of a task with prompts and reference texts may say. Unknown keys are errors."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from benchmarks.tasks.base_spec import BaseTaskSpec, Column, FileLayout, HubLayout, RowColumns, Strict
from benchmarks.tasks.rows import TextRow, optional_cell
from benchmarks.tasks.templates import Template
from consistentee.data.prompts import Keep
from consistentee.errors import UserError

TextMetricName = Literal["rouge1", "rouge2", "rougeL"]


class TextColumns(RowColumns):
    """Where a row keeps what goes into its prompt, and the response."""

    fields: dict[str, Column] = Field(min_length=1, description="name in the template: column")
    response: Column | None = None
    unwrap: dict[str, tuple[str, str]] = Field(
        default_factory=dict, description="field: the text before and after it in its column, which is taken away"
    )

    @property
    def columns(self) -> list[Column]:
        """The columns of the fields, and that of the response."""
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
        response = "" if self.response is None else optional_cell(place, cells, self.response).strip()
        return TextRow(place, fields, response)

    def _field(self, name: str, place: str, cells: Mapping[Any, Any]) -> str:
        text = optional_cell(place, cells, self.fields[name])
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
    template: str | list[str] = Field(description="of a list, a row gets the first one whose fields it has all")
    cut_field: str | None = Field(None, description="what is cut of a long prompt; by default its last field")
    keep: Keep = "start"
    separator: str = Field(" ", description="what stands between a prompt and its response")
    continuation: Continuation | None = None
    max_prompt_tokens: int = Field(512, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    files: TextFiles | None = None
    hub: TextHub | None = None

    @field_validator("template")
    @classmethod
    def _templates_can_be_read(cls, template: str | list[str]) -> str | list[str]:
        texts = [template] if isinstance(template, str) else template
        if not texts:
            raise ValueError("give at least one template")
        for text in texts:
            Template.parse(text)
        return template

    @property
    def templates(self) -> list[Template]:
        """The templates, in order."""
        return [Template.parse(text) for text in ([self.template] if isinstance(self.template, str) else self.template)]

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
