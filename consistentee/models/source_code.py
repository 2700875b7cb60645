"""The code of a user's own modules as text: what a fingerprint must see of them beside their weights."""

import secrets
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from torch import nn

_KNOWN_OTHERWISE = {__name__.partition(".")[0], "torch", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose code counts by a version: a library's own, or of this library the one of the engine."""
_COUNT_BY_A_VERSION = _KNOWN_OTHERWISE | {"baselines"}
_WITHOUT_A_FILE = secrets.token_hex()


def module_source(name: str) -> str:
    """Return the text of the file that an imported module comes from.

    Code that no file holds, as in a notebook, is told apart from all other, and from itself in another process.
    """
    try:
        return Path(str(vars(sys.modules[name])["__file__"])).read_text(encoding="utf-8")
    except (KeyError, OSError):
        return _WITHOUT_A_FILE


_source_at_first = cache(module_source)
"""A module's source, as it was when it was first asked for: an edit during a run must not change keys."""


def users_code(modules: Iterable[str]) -> list[str]:
    """Return the texts of some imported modules, but for those whose code counts by a version."""
    own = {module for module in modules if module.partition(".")[0] not in _COUNT_BY_A_VERSION}
    return sorted({_source_at_first(module) for module in own})


def code_of(module: nn.Module) -> list[str]:
    """Return the code that a module consists of, beside this library's and PyTorch's: the files of its classes.

    What such a file imports from another is seen only if it is part of the module, or the base of a part. A class that
    kept its file's text in ``source_code`` when it was made counts with that, because files may be edited since.
    """
    classes = {base for part in module.modules() for base in type(part).__mro__}
    own = [one for one in classes if one.__module__.partition(".")[0] not in _KNOWN_OTHERWISE]
    return sorted({vars(one).get("source_code") or module_source(one.__module__) for one in own})
