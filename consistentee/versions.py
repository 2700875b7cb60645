"""Versions that results depend on besides settings and data (see docs/versions.md), and the code of a user's own.

A number is raised when what it stands for may give other numbers, and never for a change that cannot. Golden cells fail
where numbers moved and nothing was raised. A method has a number of its own, :attr:`consistentee.Method.version`.
Modules of a user have no number: their source is part of a fingerprint.
"""

import secrets
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import nn

TaskKind = Literal["classification", "generation"]
"""The rows that exit: instances, or tokens being decoded."""

ENGINE_VERSION: Final[dict[TaskKind, int]] = {"classification": 1, "generation": 1}
"""The version of stepping, tracing, replaying, choosing knobs and scoring."""

TRAINING_VERSION: Final = 1
"""The version of the training loop, of the stages that methods share, and of the defaults of recipes."""

TIMING_VERSION: Final[dict[TaskKind, int]] = {"classification": 1, "generation": 1}
"""The version of how times are taken, and of the engine's speed."""


_KNOWN_OTHERWISE = {__name__.partition(".")[0], "torch", *sys.stdlib_module_names} - {"__main__"}
"""Packages that are identified by a version instead of their code."""
_COUNT_BY_A_VERSION = _KNOWN_OTHERWISE | {"baselines"}
_WITHOUT_A_FILE = secrets.token_hex()


def module_source(name: str) -> str:
    """Return the text of the file that an imported module comes from.

    Code without a file, as in a notebook, differs from all other code and from itself in another process.
    """
    try:
        return Path(str(vars(sys.modules[name])["__file__"])).read_text(encoding="utf-8")
    except (KeyError, OSError):
        return _WITHOUT_A_FILE


_source_at_first = cache(module_source)
"""Source of a module when it was first read: an edit during a run must not change keys."""


def users_code(modules: Iterable[str]) -> list[str]:
    """Return the sources of imported modules, except those that are identified by a version."""
    own = {module for module in modules if module.partition(".")[0] not in _COUNT_BY_A_VERSION}
    return sorted({_source_at_first(module) for module in own})


def code_of(module: "nn.Module") -> list[str]:
    """Return the source files of a module's classes, without this library's and PyTorch's.

    A file that these import counts only if it defines a part of the module, or a base of a part. A class that stored
    its file's text in ``source_code`` counts with that text, because files may have been edited since.
    """
    classes = {base for part in module.modules() for base in type(part).__mro__}
    own = [one for one in classes if one.__module__.partition(".")[0] not in _KNOWN_OTHERWISE]
    return sorted({vars(one).get("source_code") or module_source(one.__module__) for one in own})
