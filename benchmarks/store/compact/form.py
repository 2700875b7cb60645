"""What writing and reading share: the files of the compact form, and the columns of timings."""

from dataclasses import dataclass
from typing import get_args

from benchmarks.store.compact.columns import Column, column_of, columns_of
from benchmarks.store.records import BaseTimingRecord

FORM_VERSION = 1
"""Of the layout of the files; records have schema versions of their own."""

TIMINGS_FILE = "timings.parquet"
ROWS_FILE = "rows.parquet"
VALIDATION_ROWS_FILE = "validation.parquet"
STUDY_FILE = "study.parquet"

ABOUT = b"consistentee"
"""The key of what a file says of itself, in the metadata of its schema."""

# Columns that say where a record lay in its run; and parts of a timing, which are columns and rows of their own.
FOLDER = "folder"
FILE = "file"
CONTENDER = "contender"
CONTENDERS = "contenders"
SAMPLES = "samples"


@dataclass(frozen=True)
class TimingColumns:
    """The columns of timings, on three levels that share each row: the timing, a contender of it, a batch size."""

    timing: dict[str, Column]
    contender: dict[str, Column]
    samples: dict[str, Column]

    @classmethod
    def of(cls, schema: type[BaseTimingRecord]) -> "TimingColumns":
        """Return the columns of a schema of timings."""
        (contender,) = get_args(schema.model_fields[CONTENDERS].annotation)
        (samples,) = get_args(contender.model_fields[SAMPLES].annotation)
        return cls(columns_of(schema, [CONTENDERS]), columns_of(contender, [SAMPLES]), columns_of(samples))

    @property
    def flat(self) -> dict[str, Column]:
        """All columns, and the two that say which timing it is, and which contender of it."""
        return {FILE: column_of(str), CONTENDER: column_of(int), **self.timing, **self.contender, **self.samples}
