"""Methods of users: write one from the template, and find those in files and folders. Loads nothing heavy."""

import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from consistentee.errors import UserError
from consistentee.methods.method import available_methods, methods_in_file

TEMPLATE = Path(__file__).with_name("method_template.py")


def words_of(text: str) -> list[str]:
    """Return the words of a method's name, typed in any form: ``early-gate``, ``EarlyGate``, ``early gate``.

    Raises UserError for a name that Python cannot use, or that a registered method has already.
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)  # EarlyGate
    words = [word.lower() for word in re.split(r"[\s_-]+", parted) if word]
    module = "_".join(words)
    if not (module.isascii() and module.isidentifier()) or keyword.iskeyword(module):
        raise UserError(f"{text!r} cannot name a method: use letters, digits and hyphens, with a letter first")
    if "-".join(words) in available_methods():
        raise UserError(f"a method called {'-'.join(words)!r} is registered already; choose another name")
    return words


def write_method(text: str, out: Path | None = None) -> str:
    """Write the template under a name, see :func:`words_of`, and return ``file.py:Class``.

    ``out`` is the file, or an existing folder for it. Raises UserError if the file exists or cannot be written.
    """
    words = words_of(text)
    class_name = "".join(word.capitalize() for word in words)
    path = out or Path()
    path = path / f"{'_'.join(words)}.py" if path.is_dir() else path
    if path.suffix != ".py":
        raise UserError(f"--out {path} must be a .py file, or a folder that exists")
    source = TEMPLATE.read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(source.replace("NewMethod", class_name).replace("new-method", "-".join(words)))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return f"{path}:{class_name}"


def find_methods(places: Sequence[str]) -> list[str]:
    """Replace files and folders among ``places`` by every method that they define; other names stay as they are.

    A folder is written with a slash, ``mine/``. Raises UserError if a file cannot be imported, a file or folder defines
    no method, or two methods would have one name in tables.
    """
    from benchmarks.specs.base import label_of
    from benchmarks.specs.suites import by_name

    return list(by_name((name for place in places for name in _methods_of(place)), label_of).values())


def _methods_of(place: str) -> list[str]:
    path = Path(place).expanduser()
    if path.suffix == ".py":
        files = [path]
    elif not place.endswith(("/", "\\")):  # a folder may have the name of a method: only a slash makes it one
        return [place]
    elif path.is_dir():
        files = sorted(path.glob("*.py"))
    else:
        raise UserError(f"no such folder of methods: {place}")
    names = [name for file in files for name in methods_in_file(file)]
    if not names:
        raise UserError(f"{place} defines no subclass of consistentee.Method")
    return names
