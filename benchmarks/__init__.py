"""The common harness: tasks, suites, measurement, analysis and the command line.

Names are imported on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Results": "analysis.frames",
    "draw_figure": "analysis.figures",
    "headline": "analysis.equal_cost",
    "list_tasks": "tasks.loader",
    "load_results": "analysis.frames",
    "load_task": "tasks.loader",
    "operating_points": "analysis.tables",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605 (the names are served by __getattr__)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
