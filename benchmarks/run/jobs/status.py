"""How a job's process tells the run how far it has come: a small file that it writes once a second at most."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from consistentee.files import PARTIAL
from consistentee.progress import Position

_SECONDS_BETWEEN_WRITES = 1.0


class StatusFile:
    """A listener that writes what it hears into a file; no more often than once a second, but for a new stage.

    A file that cannot be written is no reason to stop working. A kill leaves files that the next run clears away.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.new{PARTIAL}")
        self._stage = ""
        self._next_write = 0.0

    def __call__(self, position: Position) -> None:
        now = time.monotonic()
        if now < self._next_write and position.stage == self._stage:
            return
        self._stage, self._next_write = position.stage, now + _SECONDS_BETWEEN_WRITES
        try:
            self._partial.write_text(json.dumps(asdict(position)), encoding="utf-8")
            self._partial.replace(self._path)
        except OSError:
            return


def read_status(path: Path) -> Position | None:
    """Return what a job's process said last; None if it has said nothing yet."""
    try:
        return Position(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def in_words(position: Position) -> str:
    """Write a position in one line: ``training last-exit, step 12 of 50, 85 rows/s, 0.4 min left``."""
    parts = [position.stage]
    parts += [f"step {position.done} of {position.total}"] if position.total else []
    if (pace := position.rows_per_second) is not None:
        parts.append(f"{pace:.0f} rows/s" if pace >= 10 else f"{pace:.1f} rows/s")
    if (left := position.seconds_left) is not None:
        parts.append(f"{left / 60:.1f} min left")
    return ", ".join(parts)
