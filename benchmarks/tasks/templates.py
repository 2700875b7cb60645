"""Templates: how the fields of a row become a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from consistentee.data.prompts import Prompt


@dataclass(frozen=True)
class Template:
    """Text with places for fields, ``{article}``; a brace that is text is written twice.

    Attributes:
        pieces: some text, and the field that follows it, None where more text does.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Return the template. Raises ValueError for a faulty one: without a field, with one twice, with formats."""
        pieces = []
        for literal, field, layout, conversion in Formatter().parse(text):
            if field is not None and (not field.isidentifier() or layout or conversion):
                raise ValueError(f"{{{field}}} is not the name of a field; write a brace that is text twice")
            pieces.append((literal, field))
        template = cls(tuple(pieces))
        if not template.fields:
            raise ValueError("a template needs a field, as in {question}")
        if len(set(template.fields)) < len(template.fields):
            raise ValueError(f"a field stands twice in {text!r}")
        return template

    @property
    def fields(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(field for _, field in self.pieces if field is not None)

    def prompt(self, values: Mapping[str, str], cut_field: str | None = None) -> Prompt:
        """Return the prompt made of ``values``, all that the template needs.

        What may be cut of it is ``cut_field``, or the last field where the template has no such field.
        """
        body = cut_field if cut_field is not None and cut_field in self.fields else self.fields[-1]
        place = [field for _, field in self.pieces].index(body)

        def filled(pieces: Sequence[tuple[str, str | None]]) -> str:
            return "".join(text + (values[field] if field is not None else "") for text, field in pieces)

        before = filled(self.pieces[:place]) + self.pieces[place][0]
        return Prompt(before, values[body], filled(self.pieces[place + 1 :]))
