"""Find the methods of files and folders that the command line names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.specs.base import label_of
from consistentee.errors import UserError
from consistentee.methods.method import methods_in_file


@dataclass(frozen=True)
class FoundMethods:
    """Methods by their names, and the files that could not be imported.

    Attributes:
        names: registered names, labels and ``file.py:Class``, as :func:`consistentee.get_method` takes them.
        unavailable: (file, reason) of such files of a folder.
    """

    names: list[str] = field(default_factory=list)
    unavailable: list[tuple[str, str]] = field(default_factory=list)


def find_methods(places: Sequence[str]) -> FoundMethods:
    """Replace files and folders among ``places`` by every method that they define; other names stay as they are.

    Args:
        places: ``file.py``; a folder, written with a slash (``mine/``), for all of its ``.py`` files; or names.

    Raises:
        UserError: a file cannot be imported or defines no method; a folder has none; or two methods would have one
            name in tables.
    """
    found = FoundMethods()
    for place in places:
        path, before = Path(place).expanduser(), len(found.names) + len(found.unavailable)
        if path.suffix == ".py":
            found.names.extend(methods_in_file(path))
        elif _is_folder(place, path):
            for file in sorted(path.glob("*.py")):
                try:
                    found.names.extend(methods_in_file(file))
                except UserError as error:
                    found.unavailable.append((str(file), str(error)))
        else:
            found.names.append(place)
        if len(found.names) + len(found.unavailable) == before:
            raise UserError(f"{place} defines no subclass of consistentee.Method")
    seen: dict[str, str] = {}
    for name in found.names:
        if (other := seen.setdefault(label_of(name), name)) != name:
            raise UserError(f"{other} and {name} would have the same name in tables; rename one of the classes")
    return FoundMethods(list(seen.values()), found.unavailable)


def usable_methods(places: Sequence[str]) -> FoundMethods:
    """As :func:`find_methods`, and raise UserError if nothing at all can be used."""
    found = find_methods(places)
    if not found.names:
        raise UserError("; ".join(reason for _, reason in found.unavailable) or "--methods names no method")
    return found


def labels_of(places: Sequence[str]) -> list[str]:
    """Return the labels of methods in tables and records; files and folders are looked into."""
    return [label_of(name) for name in usable_methods(places).names]


def _is_folder(place: str, path: Path) -> bool:
    # The slash is needed: a folder may have the name of a method, such as consistentee/ beside a checkout.
    if place.endswith("/") and not path.is_dir():
        raise UserError(f"no such folder of methods: {place}")
    return ("/" in place or "\\" in place or place in (".", "..")) and path.is_dir()
