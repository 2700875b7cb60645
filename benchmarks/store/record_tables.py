"""Records as a Parquet file with a column a field; nested fields, such as the parts of a key, are JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

SchemaT = TypeVar("SchemaT", bound=BaseModel)
_FILE = "file"
_OPTIONS = {
    "write_page_checksum": True,
    "data_page_size": 1 << 28,
    "max_rows_per_page": 1 << 30,
    "compression": "brotli",
    "compression_level": 11,
}


def write_records(path: Path, records: Mapping[str, BaseModel]) -> None:
    """Write records by their file in a run, in order."""
    lines = [{_FILE: file, **_flat(record)} for file, record in records.items()]
    names = dict.fromkeys(name for line in lines for name in line) or {_FILE: None}
    table = pa.table({name: pa.array([line.get(name) for line in lines]) for name in names})
    pq.write_table(table, path, row_group_size=max(1, len(lines)), **_OPTIONS)


def read_records(path: Path, schema: type[SchemaT]) -> dict[str, SchemaT]:
    """Read records by their file in a run. Raises ValueError, OSError or KeyError if it holds none."""
    lines = pq.read_table(path, page_checksum_verification=True).to_pylist()
    nested = {name for name in schema.model_fields if not _is_column(schema, name)}
    return {
        line.pop(_FILE): schema.model_validate(
            {name: json.loads(value) if name in nested else value for name, value in line.items() if value is not None}
        )
        for line in lines
    }


def _flat(record: BaseModel) -> dict[str, object]:
    values = record.model_dump(mode="json")
    columns = {name: value if _is_column(type(record), name) else json.dumps(value) for name, value in values.items()}
    return {name: value for name, value in columns.items() if value is not None}


def _is_column(schema: type[BaseModel], name: str) -> bool:
    """Check whether a field is a single value: a text, a number, or none."""
    words = str(schema.model_fields[name].annotation)
    return not any(container in words for container in ("dict", "list", "KeyParts", "TimedKnob"))
