"""Methods of users: write one from the template, and find those in files and folders. Loads nothing heavy."""

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from consistentee.errors import UserError
from consistentee.methods.method import available_methods, methods_in_file

TEMPLATE = Path(__file__).with_name("method_template.py")


@dataclass(frozen=True)
class MethodNames:
    """One name in its three forms: ``early-gate`` for users, ``early_gate`` the file, ``EarlyGate`` the class."""

    name: str
    module: str
    class_name: str


def names_of(text: str) -> MethodNames:
    """Return the forms of a name typed in any of them, or as words: ``early-gate``, ``EarlyGate``, ``early gate``.

    Raises UserError for a name that Python cannot use, or that a registered method has already.
    """
    # A word begins at a capital after a small letter, and at the last of several capitals: EarlyGate, HTTPGate.
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    words = [word.lower() for word in re.split(r"[\s_-]+", parted) if word]
    names = MethodNames("-".join(words), "_".join(words), "".join(word.capitalize() for word in words))
    if not (names.module.isascii() and names.module.isidentifier()) or keyword.iskeyword(names.module):
        raise UserError(f"{text!r} cannot name a method: it takes letters, digits and hyphens, a letter first")
    if names.name in available_methods():
        raise UserError(f"a method called {names.name!r} is registered already; choose another name")
    return names


def write_method(text: str, out: Path | None = None) -> str:
    """Write the template under a name, and return ``file.py:Class``.

    Args:
        text: see :func:`names_of`.
        out: the file, or an existing folder for it; by default a file of that name here.

    Raises:
        UserError: the file exists already, or cannot be written; or the name cannot be used.
    """
    names = names_of(text)
    path = out or Path(f"{names.module}.py")
    path = path / f"{names.module}.py" if path.is_dir() else path
    if path.suffix != ".py":
        raise UserError(f"--out {path} must be a .py file, or a folder that exists")
    source = TEMPLATE.read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(source.replace("NewMethod", names.class_name).replace("new-method", names.name))
    except FileExistsError as error:
        raise UserError(f"{path} exists already; give another name, or another --out") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return f"{path}:{names.class_name}"


def next_steps(method: str) -> str:
    """Return the commands to try on a method that has just been written."""
    return (
        f"written: {method}\n\n"
        "Make it yours; it works as it is. Then:\n"
        f"  consistentee check-method {method}\n"
        f"  consistentee run quick --methods {method}"
    )


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
    from benchmarks.specs.base import label_of

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


def _is_folder(place: str, path: Path) -> bool:
    # The slash is needed: a folder may have the name of a method, such as consistentee/ next to a checkout.
    if place.endswith("/") and not path.is_dir():
        raise UserError(f"no such folder of methods: {place}")
    return ("/" in place or "\\" in place or place in (".", "..")) and path.is_dir()
