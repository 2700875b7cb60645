"""Where results come from: machines, versions, and caveats of records and timings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.analysis.frames import TASK, Results
from benchmarks.analysis.rendering import MISSING, Column, Table
from benchmarks.store.stored_results import failed_cells


def machine(environment: Mapping[str, Any]) -> str:
    """Describe the machine of a record in one line."""
    libraries = environment.get("libraries") or {}
    threads = (environment.get("threads") or {}).get("torch")
    parts = [
        *(environment.get("gpus") or []),
        environment.get("cpu"),
        f"{environment['cores_usable']} usable cores" if environment.get("cores_usable") else None,
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        environment.get("os"),
        f"Python {environment['python']}" if environment.get("python") else None,
        *(f"{name} {libraries[name]}" for name in ("torch", "transformers") if libraries.get(name)),
    ]
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def records_frame(results: Results) -> pd.DataFrame:
    """Return a line for every record: what it is of, when, where and by which command it was made."""
    return pd.DataFrame(
        {
            "task": record.task,
            "backbone": record.backbone,
            "method": record.label,
            "parameters": ", ".join(f"{name}={value}" for name, value in sorted(record.parameters.items()))
            or "defaults",
            "seed": record.seed,
            "train_seconds": record.train_seconds,
            "precision": record.training_precision,
            "finished": record.finished_at[:19].replace("T", " "),
            "commit": str(record.environment.get("commit") or MISSING)[:10],
            "key": record.key[:12],
            "command": record.command,
            "machine": machine(record.environment),
        }
        for record in results.records
    )


def provenance_table(results: Results) -> Table:
    """Return the machines on which records were made, and from how many commits."""
    records = records_frame(results)
    found = records.groupby("machine", sort=False).agg(
        records=("key", "size"), commits=("commit", "nunique"), first=("finished", "min"), last=("finished", "max")
    )
    found[["first", "last"]] = found[["first", "last"]].apply(lambda texts: texts.str[:10])
    precisions = records.groupby(TASK)["precision"].nunique()
    mixed = [" · ".join(task) for task in precisions.index[precisions > 1]]
    return Table(
        title="Provenance",
        name="provenance",
        frame=found.reset_index(),
        columns=[
            Column("machine"),
            *(Column(name, form="d") for name in ("records", "commits")),
            Column("first"),
            Column("last"),
        ],
        notes=[
            f"{len(records)} records of {records['task'].nunique()} tasks; seeds "
            f"{', '.join(map(str, sorted(records['seed'].unique())))}; from {records['commit'].nunique()} commits. "
            "The report names the command, commit and key of every record.",
            *(
                [f"Trained in float32 and in bfloat16, by what was faster: records of {', '.join(mixed)}."]
                if mixed
                else []
            ),
            *(f"{subject}: {text}" for subject, text in caveats(results)),
        ],
    )


NOISY_SPREAD = 0.2
"""(slowest - fastest round) / median, above which times are called noisy."""
FEW_SEEDS = 3
_AFTER_TRAINING = 0.5
"""By so much the load average is above the number of cores when training, on all of them, has just ended."""


def caveats(results: Results) -> list[tuple[str, str]]:
    """Return what a reader should know before trusting the results: subject and sentence, the gravest first."""
    found = [("left out", f"{fault}.") for fault in results.faults]
    found += [("set aside", f"{path.name} in {path.parent} was not used.") for path in _set_aside(results.folder)]
    found += [("no result", f"{cell}: {error}.") for cell, error in failed_cells(results.folder).items()]
    return found + clock_caveats(results) + _record_caveats(results)


def _set_aside(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted((folder / "cells").rglob("seed*.*-*"))
        if re.search(r"\.(damaged|stale)-\d+$", path.name)
    ]


def clock_caveats(results: Results) -> list[tuple[str, str]]:
    """Return what a reader should know of the times."""
    times, timed = results.times, {(timing.task, timing.backbone) for timing in results.timings}
    found = []
    if not timed:
        return [("not timed", "no times were taken.")]
    if missing := [task for task, backbone in results.tasks.index if (task, backbone) not in timed]:
        found.append(("not timed", f"{', '.join(missing)}."))
    rounds = times.groupby(["timing", "key", "knob", "batch_size", "in_flight"], dropna=False)["seconds"]
    spread = (rounds.max() - rounds.min()) / rounds.median()
    if (spread > NOISY_SPREAD).any():
        words = (
            f"{(spread > NOISY_SPREAD).sum()} of {len(spread)} clocks spread over more than {100 * NOISY_SPREAD:.0f}%"
        )
        found.append(("noisy timing", f"{words}, at most {100 * spread.max():.0f}%."))
    for timing in results.timings:
        load, cores = timing.environment_before.get("load_average"), timing.environment_before.get("cores_usable")
        cores = cores or results.records[0].environment.get("cores_usable")
        if isinstance(load, list) and load and isinstance(cores, int) and load[0] > cores + _AFTER_TRAINING:
            where = f"{timing.task}, seed {timing.seed}"
            found.append(("busy machine", f"{where}: a load average of {load[0]:g} on {cores} cores before timing."))
    return found


def _record_caveats(results: Results) -> list[tuple[str, str]]:
    records, found = results.records, []
    seeds = results.knobs.groupby("task")["seed"].nunique()
    dev = sorted(
        {record.task for record in records if re.search(r"\bdev\w*( set)? is the test split", record.task_notes)}
    )
    differ = int(results.knobs["live_disagreements"].sum()) if "live_disagreements" in results.knobs else 0
    commits = {str(r.environment.get("commit"))[:10] for r in records if r.environment.get("commit")}
    machines = {(r.environment.get("cpu"), str(r.environment.get("gpus"))) for r in records}
    changed = sum(bool(r.environment.get("uncommitted_changes")) for r in records)
    cut = {r.task: r.truncated_prompts for r in records if getattr(r, "truncated_prompts", 0)}
    if dev:
        found.append(("dev as test", f"{', '.join(dev)}: not the numbers of the GLUE server."))
    if differ:
        found.append(("live differs", f"{differ} live exits or answers differ from the replay."))
    if results.tasks["full_label"].isna().any():
        without = results.tasks.index[results.tasks["full_label"].isna()]
        found.append(("no full model", f"{', '.join(task for task, _ in without)}: nothing to compare with."))
    if (seeds < FEW_SEEDS).any():
        few = ", ".join(map(str, seeds.index[seeds < FEW_SEEDS]))
        found.append(("few seeds", f"fewer than {FEW_SEEDS} on {few}: intervals hold little of the noise of training."))
    found += [("prompts cut", f"{count} of {task}.") for task, count in cut.items()]
    if len(commits) > 1:
        found.append(("several commits", f"records come from {len(commits)} commits."))
    if changed:
        found.append(("local changes", f"{changed} of {len(records)} records were made with uncommitted changes."))
    if len(machines) > 1:
        found.append(("several machines", f"records come from {len(machines)} kinds of machine."))
    return found
