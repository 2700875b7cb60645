"""Columns for records: which type of Arrow a field of a schema has, and how its values are written and read.

The type follows from the field's annotation, so a field that is new in a schema is a new column, and nothing else.
Schemas nest as structs, tables from names to values as maps. What is open (``dict[str, object]``, unions) is JSON text.
"""

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, TypeAdapter

_OPEN = ConfigDict(ser_json_inf_nan="constants")
_PLAIN = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True)
class Column:
    """The column of a field.

    Attributes:
        type: its type.
        written: value of a record -> value of the column.
        read: value of the column -> what the schema takes for the value.
    """

    type: pa.DataType
    written: Callable[[Any], Any]
    read: Callable[[Any], Any]


def columns_of(schema: type[BaseModel], leave_out: Sequence[str] = ()) -> dict[str, Column]:
    """Return the columns of a schema, field by field."""
    return {name: column_of(field.annotation) for name, field in schema.model_fields.items() if name not in leave_out}


def column_of(annotation: Any) -> Column:
    """Return the column for values of a type; None is null in any column."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return Column(_PLAIN[annotation], _same, _same)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _struct(annotation)
    if origin is Literal and len({type(value) for value in arguments}) == 1:
        return column_of(type(arguments[0]))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return _optional(column_of(next(argument for argument in arguments if argument is not type(None))))
    return _container(annotation, origin, arguments)


def _container(annotation: Any, origin: Any, arguments: Sequence[Any]) -> Column:
    if origin in (list, Sequence) or (origin is tuple and len(set(arguments) - {...}) == 1):
        return _list(column_of(arguments[0]))
    if origin is dict and arguments[0] is str and arguments[1] not in (object, Any):
        return _map(column_of(arguments[1]))
    return _json(annotation)


def _same(value: Any) -> Any:
    return value


def _optional(inner: Column) -> Column:
    return Column(
        inner.type,
        lambda value: None if value is None else inner.written(value),
        lambda value: None if value is None else inner.read(value),
    )


def _list(item: Column) -> Column:
    if item.written is _same:
        return Column(pa.list_(item.type), list, _same)
    return Column(
        pa.list_(item.type),
        lambda values: [item.written(value) for value in values],
        lambda values: [item.read(value) for value in values],
    )


def _map(item: Column) -> Column:
    return Column(
        pa.map_(pa.string(), item.type),
        lambda values: [(name, item.written(value)) for name, value in values.items()],
        lambda values: {name: item.read(value) for name, value in values},
    )


def _struct(schema: type[BaseModel]) -> Column:
    parts = columns_of(schema)
    return Column(
        pa.struct([(name, part.type) for name, part in parts.items()]),
        lambda value: written_values(value, parts),
        lambda values: read_values(values, parts),
    )


def _json(annotation: Any) -> Column:
    adapter = TypeAdapter(annotation, config=_OPEN)
    return Column(pa.string(), lambda value: adapter.dump_json(value).decode(), json.loads)


def written_values(record: BaseModel, columns: Mapping[str, Column]) -> dict[str, Any]:
    """Return the values of a record's fields as columns hold them."""
    return {name: column.written(getattr(record, name)) for name, column in columns.items()}


def read_values(values: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    """Return the values of a row as the schema takes them; what has no column here is passed on as it is."""
    return {
        name: columns[name].read(value) if name in columns and value is not None else value
        for name, value in values.items()
    }


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> pa.Table:
    """Return a table of rows whose values are written already; what a row lacks is null."""
    return pa.Table.from_pylist(list(rows), schema=pa.schema([(name, column.type) for name, column in columns.items()]))
