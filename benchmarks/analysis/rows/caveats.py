"""What a reader should know before trusting a results folder: found in the records, never typed by hand."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.panels.results import FULL, AnyPanel, Panel
from benchmarks.analysis.rows.instances import table_rows
from benchmarks.analysis.rows.texts import GenerationPanel, generation_rows
from benchmarks.store.folders import Fault
from benchmarks.store.stored_results import failed_cells

NOISY_SPREAD = 0.2
"""A spread, (slowest - fastest round) / median, above which a clock is called noisy."""
FEW_SEEDS = 3
"""Fewer seeds than this say little about the training's own noise."""

_AFTER_TRAINING = 0.5
"""By so much the load average is above the number of cores when training, on all of them, has just ended."""

_SET_ASIDE = re.compile(r"seed-?\d+\.(?P<kind>damaged|stale)-\d+")


@dataclass(frozen=True)
class Caveat:
    """One warning: its subject in two or three words, and a sentence."""

    subject: str
    text: str


def caveats(
    out_dir: Path, panels: Sequence[AnyPanel], faults: Sequence[Fault], of_panel: Callable[[AnyPanel], list[Caveat]]
) -> list[Caveat]:
    """Return the warnings about a results folder, the gravest first.

    Args:
        out_dir: the folder.
        panels: what was read from it.
        faults: what could not be read.
        of_panel: :func:`caveats_of_instances` or :func:`caveats_of_texts`.
    """
    left_out = [
        Caveat("left out", f"{fault.path.relative_to(out_dir)}: {fault.kind}, {fault.reason}.") for fault in faults
    ]
    by_panel = [caveat for panel in panels for caveat in of_panel(panel)]
    return [*left_out, *_set_aside(out_dir), *_failed(out_dir), *by_panel, *_of_records(panels)]


def _set_aside(out_dir: Path) -> list[Caveat]:
    folders = [(path, _SET_ASIDE.fullmatch(path.name)) for path in sorted((out_dir / "cells").rglob("seed*.*-*"))]
    return [
        Caveat("set aside", f"{path.relative_to(out_dir)} is {match['kind']} and was not used.")
        for path, match in folders
        if match
    ]


def _failed(out_dir: Path) -> list[Caveat]:
    return [Caveat("no result", f"{cell} failed, or is not defined for its task.") for cell in failed_cells(out_dir)]


def caveats_of_instances(panel: Panel) -> list[Caveat]:
    """Return the warnings about a panel of classification."""
    name = f"{panel.task} · {panel.backbone}"
    record = panel.cells[0].record
    found = []
    dev = re.search(r"[^.;]*\bdev\w*( set)? is the test split", record.task_notes)
    if dev:
        found.append(
            Caveat(
                "dev as test",
                f"{name}: {dev.group(0).strip()}; knobs were chosen on validation rows apart from it, but the numbers "
                "are not those of the GLUE server.",
            )
        )
    points = [point for cell in panel.cells for point in cell.record.operating_points]
    live, differ = sum(p.live_rows for p in points), sum(p.live_disagreements for p in points)
    if differ:
        found.append(
            Caveat("live differs", f"{name}: {differ} of {live} live exits or answers differ from the replay.")
        )
    if FULL not in panel.methods.values():
        found.append(Caveat("no full model", f"{name}: there is no full model to compare with."))
    clocks = [(clock.spread, size, row.label) for row in table_rows(panel) for size, clock in row.clocks.items()]
    return found + _of_clock(panel, clocks)


def caveats_of_texts(panel: GenerationPanel) -> list[Caveat]:
    """Return the warnings about a panel of generation."""
    name = f"{panel.task} · {panel.backbone}"
    clocks = [(clock.spread, size, row.label) for row in generation_rows(panel) for size, clock in row.clocks.items()]
    found = _of_clock(panel, clocks)
    record = panel.cells[0].record
    if record.truncated_prompts:
        found.append(
            Caveat(
                "prompts cut",
                f"{name}: {record.truncated_prompts} of {record.test_rows} test prompts were cut to "
                f"{record.max_prompt_tokens} tokens.",
            )
        )
    changed = [row.label for row in generation_rows(panel) if row.acceptance is not None and row.token_match.value < 1]
    if changed:
        found.append(
            Caveat("drafts differ", f"{name}: texts of {', '.join(changed)} are not all those of the full model.")
        )
    return found


def _of_clock(panel: AnyPanel, clocks: Sequence[tuple[float, int, str]]) -> list[Caveat]:
    """Return what is to be said of the times of a panel.

    Args:
        panel: of any kind.
        clocks: (spread, batch size, label) of all that was timed.
    """
    name = f"{panel.task} · {panel.backbone}"
    if not panel.timings:
        return [Caveat("not timed", f"{name}: no times were taken.")]
    noisy = [clock for clock in clocks if clock[0] > NOISY_SPREAD]
    found = []
    if noisy:
        spread, size, label = max(noisy)
        found.append(
            Caveat(
                "noisy timing",
                f"{name}: {len(noisy)} of {len(clocks)} clocks spread over more than {100 * NOISY_SPREAD:.0f}%, "
                f"at most {100 * spread:.0f}% ({label}, batch {size}).",
            )
        )
    for timing in panel.timings:
        load, cores = timing.environment_before.get("load_average"), timing.environment_before.get("cores_usable")
        cores = cores or panel.cells[0].record.environment.get("cores_usable")
        if isinstance(load, list) and load and isinstance(cores, int) and load[0] > cores + _AFTER_TRAINING:
            found.append(
                Caveat(
                    "busy machine",
                    f"{name}, seed {timing.seed}: a load average of {load[0]:g} on {cores} usable cores just before "
                    "timing.",
                )
            )
    return found


def _of_records(panels: Sequence[AnyPanel]) -> list[Caveat]:
    """Return what all records together tell: seeds, methods that were not run everywhere, commits, machines."""
    records = [cell.record for panel in panels for cell in panel.cells]
    found = []
    few = [p for p in panels if len(p.seeds_of()) < FEW_SEEDS]
    if few:
        found.append(
            Caveat(
                "few seeds",
                f"{len(few)} of {len(panels)} tasks have fewer than {FEW_SEEDS} seeds "
                f"({', '.join(p.task for p in few)}): their intervals hold little of the noise of training.",
            )
        )
    everywhere = {label for panel in panels for label in panel.methods}
    for panel in panels:
        absent = sorted(everywhere - set(panel.methods))
        if absent:
            found.append(Caveat("not run", f"{panel.task} · {panel.backbone} lacks {', '.join(absent)}."))
    commits = {str(r.environment.get("commit"))[:10] for r in records if r.environment.get("commit")}
    if len(commits) > 1:
        found.append(
            Caveat("several commits", f"records come from {len(commits)} commits: {', '.join(sorted(commits))}.")
        )
    changed = sum(bool(r.environment.get("uncommitted_changes")) for r in records)
    if changed:
        found.append(
            Caveat("local changes", f"{changed} of {len(records)} records were made with uncommitted changes.")
        )
    machines = {(r.environment.get("cpu"), str(r.environment.get("gpus"))) for r in records}
    if len(machines) > 1:
        found.append(Caveat("several machines", f"records come from {len(machines)} kinds of machine."))
    return found
