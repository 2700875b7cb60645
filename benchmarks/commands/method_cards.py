"""Method cards: each method in a few lines, from its class: attributes, parameters and docstrings."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.commands.inventory import listed_methods, listed_token_methods
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.methods.method import AnyMethod, Method, TokenMethod

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_FILLED = {"propagate": "propagated", "exact": "computed exactly, later"}


def write_cards(places: Sequence[str], console: "Console") -> None:
    """Print a card for every method that can be named; ``places`` are files and folders with more methods."""
    for listed in [*listed_methods(places), *listed_token_methods()]:
        if listed.method is None:
            console.print(f"{listed.name}: unavailable: {listed.reason}\n", markup=False, highlight=False)
        else:
            console.print(card_table(listed.name, method_card(listed.method)))


def method_card(method: type[AnyMethod]) -> dict[str, str]:
    """Describe a method: heading -> text, without what its class does not define."""
    year = _YEAR.search(method.paper)
    knob, values = method.knob, method.knob.values
    usual = f"{values[0]:g} to {values[-1]:g} ({len(values)} values)" if len(values) > 1 else f"{values[0]:g}"
    by_model = "" if method.knob_values is Method.knob_values else ", adapted to the model"
    card = {
        "what": _summary(method, Method),
        "paper": method.paper,
        "year": year.group() if year else "",
        "version": str(method.version),
        "training": _summary(method.fit, Method.fit),
        "rule": _summary(method.rule, Method.rule),
        "knob": f"{knob.name}, {usual}{by_model}",
        "parameters": ", ".join(f"{field.name}={_default(field)}" for field in dataclasses.fields(method)),
        "supports": _supports(method),
    }
    return {heading: text for heading, text in card.items() if text}


def _summary(described: object, inherited: object) -> str:
    """Return the first line of a docstring; nothing for one that only says what every method does."""
    text = described.__doc__ or ""
    return "" if text == inherited.__doc__ else inspect.cleandoc(text).partition("\n")[0].replace("``", "")


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(required)" if field.default is dataclasses.MISSING else repr(field.default)


def _supports(method: type[AnyMethod]) -> str:
    if not issubclass(method, TokenMethod):
        regression = ", regression" if method.supports_regression else ""
        return f"classification{regression}" + ("; replayed on a trace only" if method.replay_only else "")
    if method.generate is not TokenMethod.generate:
        return "generation, with a decoding loop of its own"
    if method.model_at is not TokenMethod.model_at:
        return "generation, with a decoder of its own for every value of the knob"
    return f"generation; keys and values of skipped layers are {_FILLED[method.kv]}"


def card_table(name: str, card: dict[str, str]) -> "Table":
    """Return a card as a table for a terminal."""
    table = plain_table(name)
    table.show_header = False
    add_columns(table, "", "")
    for heading, text in card.items():
        add_row(table, heading, text)
    return table
