"""Serve the names of a public module on first use, so that importing it costs nothing."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def served(module: str, exports: Mapping[str, str], name: str) -> Any:
    """Return a public name of a module; ``exports`` has the internal module of its package that defines each name."""
    if name not in exports:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(import_module(f"{module.partition('.')[0]}.{exports[name]}"), name)
