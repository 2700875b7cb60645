"""Check the arguments of public functions and classes by their annotations; a wrong argument raises UserError."""

import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, ValidationInfo
from pydantic.types import GetPydanticSchema
from pydantic_core import core_schema

from consistentee.errors import UserError, shown, unencodable, unknown_name

CheckedT = TypeVar("CheckedT", bound=Callable[..., Any])

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_LEFT_TO_PYDANTIC = ("builtins", "collections.abc", "pathlib", "typing")


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("Input should be a number")
    return value


Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, AfterValidator(_not_nan)]
"""A number that may be infinite, but not NaN."""


def checked(target: CheckedT) -> CheckedT:
    """Make a function, or a class, check its arguments by their annotations and raise UserError for a wrong one.

    Classes are checked by ``isinstance``; all else, with its constraints, as pydantic does in strict mode. Nothing is
    converted, and numbers of numpy and torch count as Python's.
    """
    signature, title = inspect.signature(target), target.__qualname__
    if isinstance(target, type):
        checking = _checking(getattr(target, "__init__"), signature, title, skip=1)  # noqa: B009 (for mypy)
        setattr(target, "__init__", checking)  # noqa: B010 (for mypy)
        return target
    return _checking(target, signature, title, skip=0)  # type: ignore[return-value]


def _checking(function: Callable[..., Any], signature: inspect.Signature, title: str, skip: int) -> Callable[..., Any]:
    catches_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() - signature.parameters.keys():
            if not catches_all:
                raise unknown_name(f"argument of {title}", name, signature.parameters)
        try:
            given = signature.bind(*args[skip:], **kwargs).arguments
            for name in given.keys() & _adapters(function).keys():
                value = given[name]
                value = value.item() if getattr(value, "ndim", 1) == 0 else value
                _adapters(function)[name].validate_python(value, context=f"{name} of {title}")
        except TypeError as error:
            raise UserError(f"{title}: {error}") from error
        except ValidationError as error:
            raise explained(error, f"{name} of {title}") from error
        try:
            return function(*args, **kwargs)
        except ValidationError as error:  # a dataclass of pydantic checks its fields by itself
            if error.title != title:
                raise
            raise explained(error, f"{error.errors()[0]['loc'][0]} of {title}") from error

    return run


def check_fields(instance: Any, title: str) -> None:
    """Raise UserError for a field of a dataclass that its annotation excludes; ``title`` is used in the message."""
    for name, adapter in _adapters(type(instance).__init__).items():
        try:
            adapter.validate_python(getattr(instance, name))
        except ValidationError as error:
            raise explained(error, f"{name} of {title}") from error


@functools.cache
def _adapters(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # imported for type checkers alone
        return {}
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.name in hints and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {name: TypeAdapter(_by_instance(hints[name]), config=_STRICT) for name in names}


def _by_instance(hint: Any) -> Any:
    """Return an annotation in which classes ask for instances; pydantic would build some of them from a dictionary."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(_by_instance(argument) for argument in get_args(hint))]  # noqa: UP007 (of many)
    wanted = origin or hint
    if not isinstance(wanted, type) or wanted.__module__ in _LEFT_TO_PYDANTIC:
        return Any if isinstance(hint, TypeVar) else hint
    is_checkable = not getattr(wanted, "_is_protocol", False) or getattr(wanted, "_is_runtime_protocol", False)
    is_instance = GetPydanticSchema(lambda *_: core_schema.is_instance_schema(wanted))
    return Annotated[Any, is_instance] if is_checkable else Any


def explained(error: ValidationError, argument: str) -> UserError:
    """Return what pydantic found wrong with an argument as one sentence."""
    faults = error.errors(include_url=False)
    value, place = faults[0]["input"], "".join(f"[{step}]" for step in faults[0]["loc"] if isinstance(step, int))
    choices = re.findall("'([^']*)'", str(faults[0].get("ctx", {}).get("expected", "")))
    if choices and isinstance(value, str):
        return unknown_name(argument, value, choices)
    parts = dict.fromkeys(fault["msg"].removeprefix("Value error, ") for fault in faults)
    reason = " or ".join(parts).replace("Input should be", "must be", 1).replace("Input should be ", "")
    reason = reason.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return UserError(f"{argument}{place}: {reason}, got {shown(value)}".replace(": must", " must"))


def check_layer(layer: int, num_layers: int) -> int:
    """Return a layer number. Raises UserError unless it lies in 1..L."""
    if not (isinstance(layer, int) and 1 <= layer <= num_layers):
        raise UserError(f"layers count from 1 to {num_layers}, got {shown(layer)}")
    return layer


def check_list(values: Any, info: ValidationInfo) -> None:
    """Raise UserError unless an argument, whose name is the context, is a list or something like it."""
    if isinstance(values, (str, bytes, dict)) or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        hint = "; write [text] for a single one" if isinstance(values, str) else ""
        raise UserError(f"{info.context} must be a list, got {shown(values)}{hint}")


def _check_texts(texts: Any, info: ValidationInfo, *, pairs: bool = False) -> None:
    """Check every element; the first that is no text, or cannot be encoded in UTF-8, is named by its row."""
    check_list(texts, info)
    for row, text in enumerate(texts, start=1):
        for part in text if pairs and isinstance(text, tuple) else (text,):
            if not isinstance(part, str):
                raise UserError(f"row {row} of {info.context} is not a text: {shown(part)}")
            if fault := unencodable(part):
                raise UserError(f"row {row} of {info.context} {fault}")


Texts = Annotated[Sequence[str], PlainValidator(_check_texts)]
TextsOrPairs = Annotated[Sequence[str | tuple[str, str]], PlainValidator(functools.partial(_check_texts, pairs=True))]
