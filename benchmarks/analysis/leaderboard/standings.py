"""Methods ranked by one kind of cost: which runs count, places, ranks and intervals.

Seeds of a setting are averaged first, then the settings of a task on a backbone (other recipes, rows or versions): they
are no independent tasks. So a task has one area and one rank, counts once in means and intervals over tasks, and counts
no more where it was run with more seeds, or in more settings. A method has a place if it has a result in all of them:
else its area would be over easier or harder settings than that of the others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.analysis.leaderboard.areas import Result
from benchmarks.analysis.leaderboard.settings import setting_of
from benchmarks.analysis.panels.protocols import Protocol
from benchmarks.analysis.panels.results import FULL, MAJORITY, ORACLE, REFERENCES
from benchmarks.analysis.statistics import interval_of_mean

_RESAMPLES = 2000
_NOT_RANKED = (FULL, *REFERENCES)
_YARDSTICKS = tuple(method for method in REFERENCES if method not in (MAJORITY, ORACLE))
"""Neither the floor of the scale, nor what reads the labels and leaves too late to have a whole curve."""

Kind = Literal["layers", "time"]


@dataclass(frozen=True)
class Entry:
    """One line of a standing.

    Attributes:
        place: 1 is best; None for a reference, and for a method that lacks runs.
        method: its label.
        area: mean over its tasks, on the shared scale.
        area_interval: 95% bootstrap interval over tasks; None for a single one.
        rank: mean rank among the ranked methods, over tasks; None where there is no place.
        rank_interval: as for the area.
        tasks, runs: how many it covers; a task is counted on every backbone.
        machines: letters of the machines.
    """

    place: int | None
    method: str
    area: float
    area_interval: tuple[float, float] | None
    rank: float | None
    rank_interval: tuple[float, float] | None
    tasks: int
    runs: int
    machines: str


@dataclass(frozen=True)
class Standing:
    """Methods ranked by one kind of cost: the entries, how many tasks and runs count, and the runs that do not."""

    kind: Kind
    machine: str
    entries: list[Entry]
    references: list[Entry]
    tasks: int
    runs: int
    not_compared: tuple[Protocol, ...] = ()


def standing_by(kind: Kind, machine: str, results: Sequence[Result], letters: dict[str, str]) -> Standing:
    """Rank methods by one kind of cost; ``machine`` is empty by layers, and ``letters`` are those of all machines."""
    areas: dict[str, dict[Protocol, float]] = {}
    sources: dict[str, dict[Protocol, str]] = {}
    for result in results:
        value = result.layers if kind == "layers" else result.time
        if value is not None and result.run not in areas.setdefault(result.method, {}):
            areas[result.method][result.run] = value
            sources.setdefault(result.method, {})[result.run] = letters[result.machine]
    everything = {method: by_run for method, by_run in areas.items() if method not in _NOT_RANKED} or areas
    runs = _compared_runs(everything)
    not_compared = {run for by_run in everything.values() for run in by_run}.difference(runs)
    areas = {
        method: kept
        for method, by_run in areas.items()
        if (kept := {run: area for run, area in by_run.items() if run not in not_compared})
    }
    competitors = {method: by_run for method, by_run in areas.items() if method not in _NOT_RANKED}
    ranks = _ranks({method: by_run for method, by_run in competitors.items() if len(by_run) == len(runs)})
    entries = [_entry(method, by_run, ranks.get(method), sources[method]) for method, by_run in competitors.items()]
    entries.sort(key=lambda entry: (entry.rank is None, entry.rank or 0.0, -entry.area))
    entries = [replace(e, place=None if e.rank is None else 1 + i) for i, e in enumerate(entries)]
    references = [_entry(m, areas[m], None, sources[m]) for m in _YARDSTICKS if m in areas]
    tasks = len(set(map(_task_of, runs)))
    return Standing(kind, machine, entries, references, tasks, len(runs), tuple(sorted(not_compared)))


def _compared_runs(areas: dict[str, dict[Protocol, float]]) -> list[Protocol]:
    """Return the runs that at least half of the methods have, as ``compared_panels`` does of tasks; else all runs.

    Most methods need classes: with a regression among the runs, no other method would have a place.
    """
    counts = Counter(run for by_run in areas.values() for run in by_run)
    return sorted([run for run, methods in counts.items() if 2 * methods >= len(areas)] or counts)


def _by_task(by_run: dict[Protocol, float]) -> NDArray[np.float64]:
    """Average over the seeds of each setting, then over the settings of each task, tasks in order."""
    by_setting: dict[Protocol, list[float]] = {}
    for run, area in by_run.items():
        by_setting.setdefault(setting_of(run), []).append(area)
    by_task: dict[tuple[str, str], list[float]] = {}
    for setting in sorted(by_setting):
        by_task.setdefault(_task_of(setting), []).append(float(np.mean(by_setting[setting])))
    return np.array([np.mean(areas) for areas in by_task.values()])


def _task_of(run: Protocol) -> tuple[str, str]:
    """Return what counts as one task: a task on a backbone."""
    return run.task, run.backbone


def _ranks(complete: dict[str, dict[Protocol, float]]) -> dict[str, NDArray[np.float64]]:
    """Return each method's rank on every task, 1 for the largest area; equal areas share the mean of their ranks."""
    if not complete:
        return {}
    matrix = np.stack([_by_task(by_run) for by_run in complete.values()])
    return dict(zip(complete, rankdata(-matrix, axis=0), strict=True))


def _entry(
    method: str, by_run: dict[Protocol, float], ranks: NDArray[np.float64] | None, sources: dict[Protocol, str]
) -> Entry:
    areas = _by_task(by_run)
    return Entry(
        place=None,
        method=method,
        area=float(areas.mean()),
        area_interval=_interval(areas),
        rank=None if ranks is None else float(ranks.mean()),
        rank_interval=None if ranks is None else _interval(ranks),
        tasks=areas.size,
        runs=len(by_run),
        machines=" ".join(sorted({sources[run] for run in by_run})),
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    return interval_of_mean(values, resamples=_RESAMPLES, seed=0) if values.size > 1 else None
