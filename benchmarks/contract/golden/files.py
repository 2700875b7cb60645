"""Golden cells on disk: read, checked, and written where a version allows it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.contract.golden.cells import GoldenCell
from benchmarks.contract.golden.computing import Golden
from benchmarks.contract.golden.differences import differences
from consistentee.errors import UserError
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods, get_method

FOLDER = Path(__file__).parents[3] / "tests" / "golden" / "cells"
COMMAND = "python -m benchmarks.contract.golden"

_OWN_PACKAGES = ("baselines", "consistentee")


def all_methods() -> list[str]:
    """Return the names of all methods of this project, of both kinds; not those of other packages."""
    points = {**available_methods(ENTRY_POINT_GROUP), **available_methods(TOKEN_ENTRY_POINT_GROUP)}
    return sorted(name for name, point in points.items() if point.module.partition(".")[0] in _OWN_PACKAGES)


def cell_path(name: str, folder: Path = FOLDER) -> Path:
    """Return where the golden cell of a method lies."""
    return folder / f"{name}.json"


def read_cell(name: str, folder: Path = FOLDER) -> GoldenCell | None:
    """Return the golden cell of a method, or None if it has none. Raises UserError for a file that is not one."""
    path = cell_path(name, folder)
    if not path.is_file():
        return None
    try:
        return GoldenCell.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UserError(f"{path} is not a golden cell: {error.errors()[0]['msg']}") from error


def check_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str | None:
    """Compute a method's cell anew; return what is wrong and what to do about it, or None if nothing is."""
    held = read_cell(name, folder)
    if held is None:
        return f"{name} has no golden cell yet. Write it: {COMMAND} {name}"
    now = golden.compute_again(held)
    if held.versions != now.versions:
        return f"{name} is at {_versions(now)}, its golden cell at {_versions(held)}. Write it anew: {COMMAND} {name}"
    found = differences(held, now)
    return _moved(name, found, held, now) if found else None


def _moved(name: str, found: Sequence[str], held: GoldenCell, now: GoldenCell) -> str:
    method = type(get_method(name)).__name__
    lines = [
        f"{name}: numbers moved, and no version was raised.",
        *(f"  {told}" for told in found),
        f"If something is broken, mend it. If {name} shall give other numbers from now on, raise {method}.version",
        f"above {held.versions['method']}, say why in a line of docs/versions.md, and write the cell: {COMMAND} {name}",
        "Where every method moves, it is ENGINE_VERSION or TRAINING_VERSION (consistentee/versions.py) that is raised.",
    ]
    if held.libraries != now.libraries:
        lines.append(f"(Golden numbers are of {_joined(held.libraries)}; here it is {_joined(now.libraries)}.)")
    return "\n".join(lines)


def _versions(cell: GoldenCell) -> str:
    return f"version {_joined(cell.versions)}"


def _joined(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def write_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str:
    """Write a method's golden cell where it has none, or where a version was raised; return what was done.

    Raises UserError, and writes nothing, where numbers moved and no version was raised above the one in the file.
    """
    held = read_cell(name, folder)
    if held is not None:
        now = golden.compute_again(held)
        found = differences(held, now)
        if found and not _raised(held.versions, now.versions):
            raise UserError(_moved(name, found, held, now))
        if not found and held.versions == now.versions:
            return "as it was"
    path = cell_path(name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_as_json(golden.compute(name)), encoding="utf-8")
    return "written"


def _raised(held: dict[str, int], now: dict[str, int]) -> bool:
    """Return whether some version is above the one held, and none below."""
    pairs = [(now.get(part, 0), version) for part, version in held.items()]
    pairs += [(version, 0) for part, version in now.items() if part not in held]
    return any(new > old for new, old in pairs) and all(new >= old for new, old in pairs)


def _as_json(cell: GoldenCell) -> str:
    """Return a cell as JSON, one line a list: short, and what moved is seen in a diff."""
    return _lines(cell.model_dump(mode="json"), "") + "\n"


def _lines(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [f"{deeper}{json.dumps(key)}: {_lines(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [deeper + _lines(item, deeper) for item in value]
        return "[\n" + ",\n".join(parts) + f"\n{indent}]"
    return json.dumps(value, separators=(",", ":"))
