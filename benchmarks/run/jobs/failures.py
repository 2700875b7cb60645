"""What is noted of a job that failed: one sentence and a traceback, without the folders of this machine."""

import os
import sys
import traceback
from pathlib import Path

from benchmarks.store.environment import now
from benchmarks.store.folders import FAILURE_FILE, read_failure, write_record
from benchmarks.store.records import FailureRecord
from consistentee.errors import UserError


def note_error(place: Path, key: str, error: Exception) -> FailureRecord:
    """Note an exception in the folder of a cell or a timing, with its traceback.

    What an OSError caused may pass: the disk, and no method, is to blame.
    """
    text = " ".join(str(error).split()) or "no message"
    sentence = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    may_pass = cause is not None
    return note_failure(place, key, sentence, "".join(traceback.format_exception(error)), may_pass=may_pass)


def note_failure(
    place: Path, key: str, sentence: str, traceback_text: str = "", *, refused: bool = False, may_pass: bool = False
) -> FailureRecord:
    """Note in one sentence why there is no record.

    Args:
        place: the folder of the cell or timing.
        key: its key.
        sentence: the reason.
        traceback_text: where it happened.
        refused: the method is not defined for the task.
        may_pass: the next run tries once more, unless this was that try.
    """
    earlier = read_failure(place, key)
    failure = FailureRecord(
        key=key,
        error=sentence,
        refused=refused,
        may_pass=may_pass and not (earlier and earlier.may_pass),
        traceback=_without_folders(traceback_text),
        failed_at=now(),
    )
    write_record(place / FAILURE_FILE, failure)
    return failure


def _without_folders(text: str) -> str:
    """Shorten the folders of this machine in a traceback."""
    for folder, shown in ((Path.cwd(), "."), (Path(sys.prefix), "<python>"), (Path.home(), "~")):
        text = text.replace(f"{folder}{os.sep}", f"{shown}{os.sep}")
    return text
