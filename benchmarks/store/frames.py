"""The long frames of results: their columns, and how they are written; and records as Parquet files.

Runs and published folders have the same frames.

| frame | a line for each | columns |
|---|---|---|
| ``rows`` | test row, or prompt | ``row``, ``label``; of prompts ``truncated``, ``prompt_tokens``, \
``reference_tokens`` |
| ``curve`` | value of the knob, and "never exit" (knob NaN) | ``place``, ``knob``, ``validation_layers``, \
``validation_score``, ``layers`` and every metric on test rows, ``exit_histogram``, ``flops``, ``full_flops``, ... |
| ``answers`` | test row and layer | ``row``, ``layer``, ``answer`` |
| ``exits`` | test row and knob that may be mixed | ``row``, ``place``, ``exit_layer`` |
| ``texts`` | prompt and decoded knob | ``row``, ``place``, ``tokens``, ``exit_layers``, scores |
| ``training`` | point of a curve of training | ``stage``, ``curve``, ``step``, ``value`` |
| ``times`` | timed batch in a round | ``timed`` (its number in the record), ``batch_size``, ``in_flight``, ``round``, \
``batch``, ``seconds``, ``units``, ``prefill_seconds``, ``head_seconds``, ``layer_calls``, ``completed`` |

In published folders a column ``cell`` (of times: ``timing``) in front has the number of the record. Layers are 1-based.
A metric whose score is no mean over rows has a column ``METRIC_terms``: the means of which its score is a function, see
:mod:`benchmarks.measure.terms`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from benchmarks.specs.schema import canonical_json
from consistentee.errors import UserError
from consistentee.files import replacing

FrameName: TypeAlias = Literal["rows", "curve", "answers", "exits", "texts", "training"]
FRAMES: tuple[FrameName, ...] = ("rows", "curve", "answers", "exits", "texts", "training")
"""The frames of a cell; a cell of classification has no texts, one of generation neither answers nor exits."""
AnyFrameName: TypeAlias = FrameName | Literal["times"]
"""The frames of cells, and the frame of timings."""

SchemaT = TypeVar("SchemaT", bound=BaseModel)

_FILE = "file"
_TEXT = ("key_parts", "parameters")
"""Fields with names and types of each method, written as canonical JSON. ``key`` is the SHA-256 of ``key_parts``."""
_SMALL = {"row": "int32", "place": "int16", "layer": "int8", "exit_layer": "int8", "step": "int16"}
_ONE_PAGE = {
    "write_page_checksum": True,
    # Answers of many cells are alike, and pages are compressed one by one.
    "data_page_size": 1 << 28,
    "max_rows_per_page": 1 << 30,
    "compression": "zstd",
    "compression_level": 19,
}


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write the frame of one cell or timing, atomically, without columns that hold nothing."""
    with replacing(path) as temporary:
        _small(frame.dropna(axis="columns", how="all")).to_parquet(temporary, index=False, write_page_checksum=True)


def write_published_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame of many cells as one page a column, for the smallest file."""
    table = pa.Table.from_pandas(_small(frame), preserve_index=False)
    plain = [field.name for field in table.schema if pa.types.is_list(field.type) or pa.types.is_floating(field.type)]
    # Labels and answers are few different numbers.
    words = [name for name in table.column_names if name not in plain or name in ("label", "answer")]
    pq.write_table(table, path, row_group_size=max(1, len(table)), use_dictionary=words, **_ONE_PAGE)


def _small(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: kind for name, kind in _SMALL.items() if name in frame})


def read_frame(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a frame, or some of its columns, lists as arrays. Raises UserError if it cannot be read."""
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read: {reason}; compute or publish the results again") from error
    return table.to_pandas(ignore_metadata=True)


def write_records(path: Path, records: Mapping[str, BaseModel]) -> None:
    """Write records by their file in a run, in order: a column a field, which may be a list or a struct."""
    lines = [{_FILE: file, **record.model_dump(mode="json")} for file, record in records.items()]
    table = pa.Table.from_pylist([_converted(line, canonical_json) for line in lines])
    # There are few records: dictionaries and statistics would be larger than what they describe.
    pq.write_table(table, path, use_dictionary=False, write_statistics=False, store_schema=False, **_ONE_PAGE)


def read_records(path: Path, schema: type[SchemaT]) -> dict[str, SchemaT]:
    """Read records by their file in a run. Raises ValueError, OSError or KeyError if it holds none."""
    lines = pq.read_table(path, page_checksum_verification=True).to_pylist()
    return {line.pop(_FILE): schema.model_validate(_converted(line, json.loads)) for line in lines}


def _converted(fields: Mapping[str, Any], convert: Callable[[Any], object]) -> dict[str, object]:
    return {name: convert(value) if name in _TEXT else value for name, value in fields.items()}
