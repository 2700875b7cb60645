"""How a method does on one run: the area under its curve, on the scale that tasks share."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.analysis.comparisons.curve_summaries import TIME, blind_score, layers_area, ratio_area
from benchmarks.analysis.leaderboard.collecting import Collected, shown_names
from benchmarks.analysis.leaderboard.settings import setting_of, task_names
from benchmarks.analysis.panels.protocols import Protocol
from benchmarks.analysis.panels.results import FULL, MAJORITY, Panel, StoredCell, panels
from benchmarks.store.records import CellRecord

NARROW_SCALE = 0.1
"""Width of the scale, in score, below which a reader is warned."""


@dataclass(frozen=True)
class Result:
    """One method on one run: areas on the shared scale, and the machine that they come from."""

    method: str
    run: Protocol
    machine: str
    layers: float
    time: float | None


def results_of(collected: Collected) -> list[Result]:
    """Return how every method does on every run and machine; the folder that was named first counts."""
    everything = collected.everything
    anchors = _first_by_run(cell for cell in everything if cell.record.method in (FULL, MAJORITY))
    names, tasks = shown_names(everything), task_names(collected.settings)
    results: dict[tuple[str, Protocol, str], Result] = {}
    for folder, cells in collected.cells.items():
        runs: dict[Protocol, list[StoredCell]] = {}
        for cell in cells:
            runs.setdefault(Protocol.of(cell.record), []).append(cell)
        for run, own in runs.items():
            present = {name for cell in own for name in (cell.record.method, cell.record.label)}
            borrowed = [cell for method, cell in anchors.get(run, {}).items() if method not in present]
            timings = [timing for timing in collected.timings.get(folder, []) if timing.seed == run.seed]
            panel = panels([*own, *borrowed], timings)[0]
            scale = _scale(panel)
            if scale is None:
                where = f"{tasks[setting_of(run)]} in {folder}, seed {run.seed}"
                collected.left_out.append(f"{where}: the full model is no better there than the most frequent class")
                continue
            if scale[1] - scale[0] < NARROW_SCALE:
                collected.narrow[run] = scale[1] - scale[0]
            for label in dict.fromkeys(cell.record.label for cell in own):
                result = _result(panel, label, names[label, panel.methods[label]], run, scale)
                results.setdefault((result.method, run, result.machine), result)
    return list(results.values())


def machine_of(record: CellRecord) -> str:
    """Return what times depend on first: the GPUs, else the CPU and its usable cores."""
    gpus = record.environment.get("gpus")
    if isinstance(gpus, list) and gpus:
        return ", ".join(map(str, gpus))
    cores = record.environment.get("cores_usable")
    return f"{record.environment.get('cpu') or 'unknown CPU'}{f', {cores} cores' if cores else ''}"


def _first_by_run(cells: Iterable[StoredCell]) -> dict[Protocol, dict[str, StoredCell]]:
    found: dict[Protocol, dict[str, StoredCell]] = {}
    for cell in cells:
        found.setdefault(Protocol.of(cell.record), {}).setdefault(cell.record.method, cell)
    return found


def _scale(panel: Panel) -> tuple[float, float] | None:
    """Return (floor, full): the scores that are 0 and 1 on the shared scale, None if the floor is not below."""
    full_cells = panel.cells_of_method(FULL) or list(panel.cells)
    full = max(cell.record.curve_test[-1].scores[panel.metric] for cell in full_cells)
    floor = blind_score(panel)
    return (floor, full) if full > floor else None


def _result(panel: Panel, label: str, name: str, run: Protocol, scale: tuple[float, float]) -> Result:
    floor, full = scale
    timed = ratio_area(panel, label, run.seed, TIME)
    return Result(
        method=name,
        run=run,
        machine=machine_of(panel.cells_of(label)[0].record),
        layers=(layers_area(panel, label, run.seed) - floor) / (full - floor),
        time=None if timed is None else (timed - floor) / (full - floor),
    )
