"""Write a working method in one file. Loads nothing heavy."""

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from consistentee.errors import UserError
from consistentee.methods.method import available_methods

TEMPLATE = Path(__file__).parents[1] / "templates" / "exit_method.py"


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
