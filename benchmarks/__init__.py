"""The common harness: tasks, suites, measurement, analysis and the command line.

Names are imported on first use, so that importing the package costs nothing.
"""

from typing import Any

from consistentee.exports import served

_EXPORTS = {
    "Filters": "specs.suites",
    "Results": "analysis.frames",
    "draw_figure": "analysis.figures",
    "headline": "analysis.equal_cost",
    "list_tasks": "tasks.loader",
    "load_results": "analysis.frames",
    "load_suite": "specs.suites",
    "load_task": "tasks.loader",
    "operating_points": "analysis.tables",
    "run_suite": "run.sweep",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605 (the names are served by __getattr__)


def __getattr__(name: str) -> Any:
    return served(__name__, _EXPORTS, name)


def __dir__() -> list[str]:
    return list(__all__)
