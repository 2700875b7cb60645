"""The leaderboard: methods compared over tasks, from results folders of this machine and of others.

First at equal cost, as everywhere, see :mod:`benchmarks.analysis.comparisons.headline`; then by whole curves. How a
method is scored on one run (a task, a backbone and a seed): the area under its curve, which is its mean test
score over all budgets (see :func:`benchmarks.analysis.curves.area_under_front`), then put on a scale that tasks share:
0 is the most frequent class, 1 is the full model. A method that keeps the full model's score at every budget has 100%;
what a shorter model (``static``) reaches stands in the table, as the yardstick that an exit rule has to beat, and not
in the scale, whose width would then be the noise of a small difference.

Two standings: by layers, over all machines, because layers are the same everywhere; and by time, one for each machine,
because times are not. A method is ranked only if it has a result on every run of the standing. One that lacks some is
listed, marked, with the area over the runs it has, but it has no place and no rank. Runs of which fewer than half of
the methods have a result, such as a regression, are not of the standing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.analysis.comparisons.curve_summaries import TIME, blind_score, layers_area, ratio_area
from benchmarks.analysis.results import FULL, MAJORITY, ORACLE, REFERENCES, Panel, StoredCell, panels, refuse_generation
from benchmarks.measure.intervals import interval_of_mean
from benchmarks.store.records import CellRecord, TimingRecord
from benchmarks.store.stored_results import open_results
from consistentee.errors import UserError

NARROW_SCALE = 0.1
"""Width of the scale, in score, below which a reader is warned."""
_RESAMPLES = 2000
Kind = Literal["layers", "time"]


class Run(NamedTuple):
    """What methods are compared on: one task as it was cut, on one backbone, with one seed."""

    task: str
    task_version: int
    backbone: str
    num_layers: int
    metric: str
    train_rows: int
    test_rows: int
    seed: int

    @property
    def setting(self) -> tuple[object, ...]:
        """All but the seed: runs of one setting are one task in the count of tasks."""
        return self[:-1]


@dataclass(frozen=True)
class Result:
    """One method on one run: areas on the shared scale, and the machine that they come from."""

    method: str
    run: Run
    machine: str
    layers: float
    time: float | None


@dataclass(frozen=True)
class Entry:
    """One line of a standing.

    Attributes:
        place: 1 is best; None for a reference, and for a method that lacks runs.
        method: its label.
        area: mean over its runs, on the shared scale.
        area_interval: 95% bootstrap interval over runs (tasks and seeds); None for a single run.
        rank: mean rank among the ranked methods, over runs; None where there is no place.
        rank_interval: as for the area.
        tasks, runs: how many it covers.
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
    not_compared: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """All standings, the machines by their letters, what a reader must know, and the tasks as they are compared."""

    standings: list[Standing]
    machines: dict[str, str]
    notes: list[str]
    panels: tuple[Panel, ...] = ()


@dataclass
class _Collected:
    cells: dict[Path, list[StoredCell]] = field(default_factory=dict)
    timings: dict[Path, list[TimingRecord]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    narrow: dict[Run, float] = field(default_factory=dict)


def load_leaderboard(folders: Sequence[Path]) -> Leaderboard:
    """Rank the methods of some results folders.

    What cannot be read is named in the notes and left out, and so is a run whose full model is no better than the most
    frequent class; where that is every run, there is no standing. Where two folders have the same method on the same
    run, the folder named first counts. Raises UserError if no folder holds a usable result.
    """
    collected = _collect(dict.fromkeys(folders))
    results = _results(collected)
    if not collected.cells:
        raise UserError("no results to rank" + "".join(f"; {line}" for line in collected.left_out[:3]))
    letters = {machine: _letter(i) for i, machine in enumerate(dict.fromkeys(result.machine for result in results))}
    standings = [_standing("layers", "", results, letters)]
    standings += [
        _standing("time", machine, timed, letters)
        for machine in letters
        if (timed := [r for r in results if r.machine == machine and r.time is not None])
    ]
    return Leaderboard(
        standings=[standing for standing in standings if standing.entries or standing.references],
        machines={letter: machine for machine, letter in letters.items()},
        notes=[
            *(f"left out: {line}" for line in collected.left_out),
            *_not_compared(standings),
            *_narrow_scales(collected),
        ],
        panels=tuple(_panels_by_setting(collected)),
    )


def _not_compared(standings: Iterable[Standing]) -> list[str]:
    runs = dict.fromkeys(run for standing in standings for run in standing.not_compared)
    return [
        f"{run.task}, {run.backbone}, seed {run.seed}: does not count, as fewer than half of the methods have a result"
        for run in runs
    ]


def _narrow_scales(collected: _Collected) -> list[str]:
    return [
        f"{run.task}, {run.backbone}, seed {run.seed}: the full model is only {100 * width:.1f} points above the most "
        "frequent class, so areas there are mostly noise; trust the ranks"
        for run, width in collected.narrow.items()
    ]


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"M{number + 1}"


# ---------------------------------------------------------------------------------------------- reading


def _collect(folders: Iterable[Path]) -> _Collected:
    collected = _Collected()
    for folder in folders:
        try:
            refuse_generation(folder)
            found = open_results(folder, CellRecord, TimingRecord)
        except UserError as error:
            collected.left_out.append(str(error))
            continue
        collected.left_out += [str(fault) for fault in found.faults]
        for cell in found.cells:
            if fault := record_fault(cell.record):
                collected.left_out.append(f"{cell.rows.place} is damaged ({fault})")
            else:
                collected.cells.setdefault(folder, []).append(cell)
        for timing in found.timings:
            if fault := timing_fault(timing):
                collected.left_out.append(f"a timing of {timing.task} in {folder} is damaged ({fault})")
            else:
                collected.timings.setdefault(folder, []).append(timing)
    return collected


def record_fault(record: CellRecord) -> str | None:
    """Say what makes a record unusable that its schema cannot see, or return None."""
    points = [*record.curve_test, *record.curve_validation]
    points += [side for point in record.operating_points for side in (point.test, point.validation)]
    if not record.curve_test or len(record.curve_test) != len(record.curve_validation):
        return "its curves are empty or of different lengths"
    if not record.operating_points:
        return "it has no operating point"
    for point in points:
        if not np.isfinite(point.scores.get(record.metric, np.nan)):
            return f"no finite {record.metric} at the knob {point.knob:g}"
        histogram = point.exit_histogram
        if len(histogram) < record.num_layers or min(histogram) < 0 or sum(histogram) == 0:
            return f"the exit histogram at the knob {point.knob:g} does not hold {record.num_layers} layers"
    return None


def timing_fault(timing: TimingRecord) -> str | None:
    """Say what makes a timing unusable that its schema cannot see, or return None."""
    for contender in timing.contenders:
        for sample in contender.samples:
            seconds = sample.seconds_per_round
            if len(seconds) != timing.rounds or len(sample.seconds_per_batch) != timing.rounds:
                return f"{contender.label} lacks rounds"
            batches = -(-sample.rows // max(sample.batch_size, 1))
            if batches < 1 or any(len(one_round) != batches for one_round in sample.seconds_per_batch):
                return f"{contender.label} lacks batches"
            if not all(np.isfinite(value) and value > 0 for value in seconds):
                return f"{contender.label} has times that are none"
    return None


def machine_of(record: CellRecord) -> str:
    """Return what times depend on first: the GPUs, else the CPU and its usable cores."""
    gpus = record.environment.get("gpus")
    if isinstance(gpus, list) and gpus:
        return ", ".join(map(str, gpus))
    cores = record.environment.get("cores_usable")
    return f"{record.environment.get('cpu') or 'unknown CPU'}{f', {cores} cores' if cores else ''}"


def run_of(record: CellRecord) -> Run:
    """Return the run that a record belongs to."""
    return Run(**{name: getattr(record, name) for name in Run._fields})


# ---------------------------------------------------------------------------------------------- scoring


def _results(collected: _Collected) -> list[Result]:
    everything = [cell for cells in collected.cells.values() for cell in cells]
    anchors = _first_by_run(cell for cell in everything if cell.record.method in (FULL, MAJORITY))
    names = _names(everything)
    results: dict[tuple[str, Run, str], Result] = {}
    for folder, cells in collected.cells.items():
        for run in dict.fromkeys(run_of(cell.record) for cell in cells):
            own = [cell for cell in cells if run_of(cell.record) == run]
            present = {name for cell in own for name in (cell.record.method, cell.record.label)}
            borrowed = [cell for method, cell in anchors.get(run, {}).items() if method not in present]
            panel = panels([*own, *borrowed], _timings_of(collected.timings.get(folder, []), run))[0]
            scale = _scale(panel)
            if scale is None:
                where = f"{run.task} in {folder}, seed {run.seed}"
                collected.left_out.append(f"{where}: the full model is no better there than the most frequent class")
                continue
            if scale[1] - scale[0] < NARROW_SCALE:
                collected.narrow[run] = scale[1] - scale[0]
            for label in {cell.record.label: None for cell in own}:
                result = _result(panel, label, names[label, panel.methods[label]], run, scale)
                results.setdefault((result.method, run, result.machine), result)
    return list(results.values())


def _panels_by_setting(collected: _Collected) -> list[Panel]:
    """Return a panel for every task as it was cut and every backbone, each curve of a run from the first folder."""
    everything = [cell for cells in collected.cells.values() for cell in cells]
    names, owners = _names(everything), dict[tuple[Run, str], Path]()
    by_setting: dict[tuple[object, ...], list[StoredCell]] = {}
    for folder, cells in collected.cells.items():
        for cell in cells:
            run, name = run_of(cell.record), names[cell.record.label, cell.record.method]
            if owners.setdefault((run, name), folder) == folder:
                named = replace(cell, record=cell.record.model_copy(update={"label": name}))
                by_setting.setdefault(run.setting, []).append(named)
    timings = [timing for of_folder in collected.timings.values() for timing in of_folder]
    return [panel for cells in by_setting.values() for panel in panels(cells, timings)]


def _first_by_run(cells: Iterable[StoredCell]) -> dict[Run, dict[str, StoredCell]]:
    found: dict[Run, dict[str, StoredCell]] = {}
    for cell in cells:
        found.setdefault(run_of(cell.record), {}).setdefault(cell.record.method, cell)
    return found


def _names(cells: Sequence[StoredCell]) -> dict[tuple[str, str], str]:
    """Return the shown name of every (label, method): the label, with the method where one label names several."""
    methods: dict[str, set[str]] = {}
    for cell in cells:
        methods.setdefault(cell.record.label, set()).add(cell.record.method)
    return {
        (label, method): label if len(found) == 1 else f"{label} ({method})"
        for label, found in methods.items()
        for method in found
    }


def _timings_of(timings: Sequence[TimingRecord], run: Run) -> list[TimingRecord]:
    return [t for t in timings if (t.task, t.backbone, t.seed) == (run.task, run.backbone, run.seed)]


def _scale(panel: Panel) -> tuple[float, float] | None:
    """Return (floor, full): the scores that are 0 and 1 on the shared scale, None if the floor is not below."""
    full_cells = panel.cells_of_method(FULL) or list(panel.cells)
    full = max(cell.record.curve_test[-1].scores[panel.metric] for cell in full_cells)
    floor = blind_score(panel)
    return (floor, full) if full > floor else None


def _result(panel: Panel, label: str, name: str, run: Run, scale: tuple[float, float]) -> Result:
    floor, full = scale
    timed = ratio_area(panel, label, run.seed, TIME)
    return Result(
        method=name,
        run=run,
        machine=machine_of(panel.cells_of(label)[0].record),
        layers=(layers_area(panel, label, run.seed) - floor) / (full - floor),
        time=None if timed is None else (timed - floor) / (full - floor),
    )


# ---------------------------------------------------------------------------------------------- ranking


def _standing(kind: Kind, machine: str, results: Sequence[Result], letters: dict[str, str]) -> Standing:
    areas: dict[str, dict[Run, float]] = {}
    sources: dict[str, dict[Run, str]] = {}
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
    ranks = _ranks({method: by_run for method, by_run in competitors.items() if len(by_run) == len(runs)}, runs)
    entries = [_entry(method, by_run, ranks.get(method), sources[method]) for method, by_run in competitors.items()]
    entries.sort(key=lambda entry: (entry.rank is None, entry.rank or 0.0, -entry.area))
    entries = [replace(e, place=None if e.rank is None else 1 + i) for i, e in enumerate(entries)]
    references = [_entry(m, areas[m], None, sources[m]) for m in _YARDSTICKS if m in areas]
    tasks = len({run.setting for run in runs})
    return Standing(kind, machine, entries, references, tasks, len(runs), tuple(sorted(not_compared)))


def _compared_runs(areas: dict[str, dict[Run, float]]) -> list[Run]:
    """Return the runs that at least half of the methods have, as ``compared_panels`` does of tasks; else all runs.

    Most methods need classes: with a regression among the runs, no other method would have a place.
    """
    counts = Counter(run for by_run in areas.values() for run in by_run)
    return sorted([run for run, methods in counts.items() if 2 * methods >= len(areas)] or counts)


_NOT_RANKED = (FULL, *REFERENCES)
_YARDSTICKS = tuple(method for method in REFERENCES if method not in (MAJORITY, ORACLE))
"""Neither the floor of the scale, nor what reads the labels and leaves too late to have a whole curve."""


def _ranks(complete: dict[str, dict[Run, float]], runs: Sequence[Run]) -> dict[str, NDArray[np.float64]]:
    """Return each method's rank on every run, 1 for the largest area; equal areas share the mean of their ranks."""
    if not complete:
        return {}
    matrix = np.array([[by_run[run] for run in runs] for by_run in complete.values()])
    return dict(zip(complete, rankdata(-matrix, axis=0), strict=True))


def _entry(method: str, by_run: dict[Run, float], ranks: NDArray[np.float64] | None, sources: dict[Run, str]) -> Entry:
    areas = np.array(list(by_run.values()))
    return Entry(
        place=None,
        method=method,
        area=float(areas.mean()),
        area_interval=_interval(areas),
        rank=None if ranks is None else float(ranks.mean()),
        rank_interval=None if ranks is None else _interval(ranks),
        tasks=len({run.setting for run in by_run}),
        runs=len(by_run),
        machines=" ".join(sorted({sources[run] for run in by_run})),
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    return interval_of_mean(values, resamples=_RESAMPLES, seed=0) if values.size > 1 else None
