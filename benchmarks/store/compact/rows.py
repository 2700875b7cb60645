"""The rows of many cells as one table: numbered columns (``prediction_0``, ``prediction_1``) become one list column.

Cells differ in how many layers and operating points they have, and so in their columns; lists have any length.
Numbers take the smallest type that holds all of them. What a cell's own columns were, in which order and of which type,
is kept apart as its layout, from which its table comes back exactly.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CELL = "cell"
"""The column that says whose row it is: the number of a cell in the table of cells."""

_NUMBERED = re.compile(r"(.+)_\d+")
_LIST = re.compile(r"list<\w+: (.+)>")
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())

Layout = tuple[tuple[str, str], ...]
"""The columns of one cell's table, in order: name, and type as text."""


def layout_of(table: pa.Table) -> Layout:
    """Return the layout of a cell's table."""
    return tuple((field.name, str(field.type)) for field in table.schema)


def joined(cells: Sequence[tuple[int, pa.Table]]) -> pa.Table:
    """Return the rows of all cells: the first row of every cell, then the second, since rows of one input are alike.

    Args:
        cells: number and table of every cell; at least one.
    """
    whole = pa.concat_tables([_with_lists(table) for _, table in cells], promote_options="permissive")
    sizes = [len(table) for _, table in cells]
    numbers = np.repeat([number for number, _ in cells], sizes)
    order = np.lexsort((numbers, np.concatenate([np.arange(size) for size in sizes])))
    return whole.add_column(0, CELL, pa.array(numbers, pa.int32())).take(pa.array(order))


def own_table(rows: pa.Table, layout: Layout) -> pa.Table:
    """Return a cell's own table: of its rows, in the order of its layout."""
    columns = {name: rows[name].combine_chunks() for name in rows.column_names}
    found, places = {}, Counter[str]()
    for name, text in layout:
        if name in columns:
            values = columns[name]
        else:
            base = _base(name)
            values = pc.list_element(columns[base], places[base])
            places[base] += 1
        found[name] = _as_type(values, _type_named(text))
    return pa.table(found)


def _as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if "null" in str(kind):  # a column that holds nothing but None and empty lists, which Arrow does not cast
        return pa.array(values.to_pylist(), kind)
    return values.cast(kind)


def _base(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name


def _with_lists(table: pa.Table) -> pa.Table:
    """Put columns that differ by their number alone into one column of lists."""
    bases = [_base(name) for name in table.column_names]
    columns = {}
    for base in dict.fromkeys(bases):
        members = [table.column(place) for place, other in enumerate(bases) if other == base]
        columns[base] = members[0] if base in table.column_names else _zipped(members, len(table))
    return pa.table(columns)


def _zipped(columns: Sequence[pa.ChunkedArray], rows: int) -> pa.Array:
    parts = [pa.table({"values": column}) for column in columns]
    values = pa.concat_tables(parts, promote_options="permissive")["values"]
    order = np.arange(len(columns) * rows).reshape(len(columns), rows).T.ravel()
    offsets = pa.array(np.arange(rows + 1) * len(columns), pa.int32())
    return pa.ListArray.from_arrays(offsets, values.take(pa.array(order)).combine_chunks())


def alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return tables with the columns of all, each in the smallest type that holds all of its numbers exactly."""
    whole = pa.concat_tables(tables, promote_options="permissive")
    whole = pa.table({name: _smallest(whole[name]) for name in whole.column_names})
    starts = np.cumsum([0, *(len(table) for table in tables)])
    return [whole.slice(start, len(table)) for start, table in zip(starts.tolist(), tables, strict=False)]


def _smallest(column: pa.ChunkedArray) -> pa.ChunkedArray:
    leaves, depth = column.combine_chunks(), 0
    while pa.types.is_list(leaves.type):
        leaves, depth = leaves.flatten(), depth + 1
    kind = _smallest_type(leaves)
    for _ in range(depth):
        kind = pa.list_(kind)
    return column.cast(kind)


def _smallest_type(values: pa.Array) -> pa.DataType:
    if pa.types.is_integer(values.type):
        low, high = (bound.as_py() or 0 for bound in pc.min_max(values).values())
        bits = 1 + max((~low if low < 0 else low).bit_length(), high.bit_length())
        return next(kind for kind in _INTEGERS if kind.bit_width >= bits)
    if pa.types.is_float64(values.type) and values.cast(pa.float32(), safe=False).cast(pa.float64()).equals(values):
        return pa.float32()
    return values.type


def _type_named(text: str) -> pa.DataType:
    """Return the type that a layout names."""
    match = _LIST.fullmatch(text)
    return pa.list_(_type_named(match[1])) if match else pa.type_for_alias(text)
