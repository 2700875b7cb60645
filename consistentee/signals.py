"""Signals: one number a row, read off a layer, that a rule compares with its threshold. A public module."""

from typing import Any

from consistentee.exports import served

_EXPORTS = dict.fromkeys(
    ("Signal", "entropy", "head_probability", "margin", "normalised_entropy", "top_probability"), "rules.signals"
)

__all__ = sorted(_EXPORTS)  # noqa: PLE0605 (the names are served by __getattr__)


def __getattr__(name: str) -> Any:
    return served(__name__, _EXPORTS, name)


def __dir__() -> list[str]:
    return list(__all__)
