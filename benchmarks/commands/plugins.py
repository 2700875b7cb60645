"""Methods that are named by a file or a folder: what they hold, and what of it cannot be used."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.specs.base import label_of
from consistentee.errors import UserError
from consistentee.methods.method import methods_in_file


@dataclass(frozen=True)
class FoundMethods:
    """Methods by their names, and the files that gave none.

    Attributes:
        names: registered names, labels and ``file.py:Class``, as :func:`consistentee.get_method` takes them.
        unavailable: (file, reason) of the files of a folder that could not be imported.
    """

    names: list[str]
    unavailable: list[tuple[str, str]]


def find_methods(places: Sequence[str]) -> FoundMethods:
    """Replace files and folders among ``places`` by every method that they define; other names stay as they are.

    Args:
        places: ``file.py``; a folder, written with a slash (``mine/``), whose ``.py`` files are all looked into; or
            names, which cost nothing. A folder's file that cannot be imported is told in ``unavailable``.

    Raises:
        UserError: a file cannot be imported or defines no method; a folder has none; or two methods would have one
            name in tables.
    """
    names: list[str] = []
    unavailable: list[tuple[str, str]] = []
    for place in places:
        path = Path(place).expanduser()
        if path.suffix == ".py":
            names += _required(methods_in_file(path), place)
        elif _is_folder(place, path):
            found, failures = _methods_of_folder(path)
            unavailable += failures
            names += found if failures else _required(found, place)
        else:
            names.append(place)
    return FoundMethods(_told_apart(dict.fromkeys(names)), unavailable)


def usable_methods(places: Sequence[str]) -> FoundMethods:
    """As :func:`find_methods`, and raise UserError if nothing at all can be used."""
    found = find_methods(places)
    if not found.names:
        raise UserError("; ".join(reason for _, reason in found.unavailable) or "--methods names no method")
    return found


def labels_of(places: Sequence[str]) -> list[str]:
    """Return the names that methods have in tables and records; files and folders are looked into."""
    return [label_of(name) for name in usable_methods(places).names]


def _is_folder(place: str, path: Path) -> bool:
    # The slash is needed: a folder may have the name of a method, such as consistentee/ beside a checkout.
    if place.endswith("/") and not path.is_dir():
        raise UserError(f"no such folder of methods: {place}")
    return ("/" in place or "\\" in place or place in (".", "..")) and path.is_dir()


def _methods_of_folder(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    names: list[str] = []
    failures: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.py")):
        try:
            names += methods_in_file(path)
        except UserError as error:
            failures.append((str(path), str(error)))
    return names, failures


def _required(names: list[str], place: str) -> list[str]:
    if not names:
        raise UserError(f"{place} defines no subclass of consistentee.Method")
    return names


def _told_apart(names: Iterable[str]) -> list[str]:
    """Refuse two files whose classes have one name: it is the name of their curve and of their results' folder."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(label_of(name), name)
        if other != name:
            raise UserError(f"{other} and {name} would have the same name in tables; rename one of the classes")
    return list(seen.values())
