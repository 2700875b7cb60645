"""The whole leaderboard: its standings, the machines, and what a reader must know."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.leaderboard.areas import results_of
from benchmarks.analysis.leaderboard.collecting import Collected, collect, panels_by_setting
from benchmarks.analysis.leaderboard.settings import setting_notes, setting_of, task_names
from benchmarks.analysis.leaderboard.standings import Standing, standing_by
from benchmarks.analysis.panels.protocols import Protocol
from benchmarks.analysis.panels.results import Panel
from consistentee.errors import UserError


@dataclass(frozen=True)
class Leaderboard:
    """All standings, the machines by their letters, what a reader must know, and a panel for every setting."""

    standings: list[Standing]
    machines: dict[str, str]
    notes: list[str]
    panels: tuple[Panel, ...] = ()


def load_leaderboard(folders: Sequence[Path]) -> Leaderboard:
    """Rank the methods of some results folders.

    What cannot be read is named in the notes and left out, and so is a run whose full model is no better than the most
    frequent class; where that is every run, there is no standing. Where two folders have the same method on the same
    run, the folder named first counts. Runs of other recipes, rows, versions or backbone files are another setting:
    methods are compared within it, and the names of such settings say what differs. Raises UserError if no folder holds
    a usable result.
    """
    collected = collect(dict.fromkeys(folders))
    results = results_of(collected)
    if not collected.cells:
        raise UserError("no results to rank" + "".join(f"; {line}" for line in collected.left_out[:3]))
    letters = {machine: _letter(i) for i, machine in enumerate(dict.fromkeys(result.machine for result in results))}
    standings = [standing_by("layers", "", results, letters)]
    standings += [
        standing_by("time", machine, timed, letters)
        for machine in letters
        if (timed := [r for r in results if r.machine == machine and r.time is not None])
    ]
    return Leaderboard(
        standings=[standing for standing in standings if standing.entries or standing.references],
        machines={letter: machine for machine, letter in letters.items()},
        notes=[
            *(f"left out: {line}" for line in collected.left_out),
            *setting_notes(collected.settings),
            *_not_compared(standings, collected),
            *_narrow_scales(collected),
        ],
        panels=tuple(panels_by_setting(collected)),
    )


def _not_compared(standings: Iterable[Standing], collected: Collected) -> list[str]:
    runs = dict.fromkeys(run for standing in standings for run in standing.not_compared)
    return [
        f"{name}: does not count, as fewer than half of the methods have a result" for name in _named(runs, collected)
    ]


def _narrow_scales(collected: Collected) -> list[str]:
    return [
        f"{name}: the full model is only {100 * width:.1f} points above the most frequent class, so areas there are "
        "mostly noise; trust the ranks"
        for name, width in zip(_named(collected.narrow, collected), collected.narrow.values(), strict=True)
    ]


def _named(runs: Iterable[Protocol], collected: Collected) -> list[str]:
    tasks = task_names(collected.settings)
    return [f"{tasks[setting_of(run)]}, {run.backbone}, seed {run.seed}" for run in runs]


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"M{number + 1}"
