"""Where results come from: machines, versions, and caveats of records and timings."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.analysis.frames import Results
from benchmarks.analysis.rendering import Column, Table
from benchmarks.store.records import GenerationRecord


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


def provenance_table(results: Results) -> Table:
    """Return the machines on which records were made, and from how many commits."""
    lines = [(machine(r.environment), r.environment.get("commit"), r.finished_at[:10]) for r in results.records]
    records = pd.DataFrame(lines, columns=["machine", "commit", "day"])
    found = records.groupby("machine", sort=False).agg(
        records=("day", "size"), commits=("commit", "nunique"), first=("day", "min"), last=("day", "max")
    )
    seeds = ", ".join(map(str, sorted(results.cells["seed"].unique())))
    return Table(
        title="Provenance",
        name="provenance",
        frame=found.reset_index(),
        columns=[
            Column("machine"),
            *(Column(name, form="d") for name in ("records", "commits")),
            *(Column("first"), Column("last")),
        ],
        notes=[
            f"{len(records)} records of {results.cells['task'].nunique()} tasks; "
            f"seeds {seeds}; from {records['commit'].nunique()} commits. "
            "The command, commit and key of each are in cells.parquet.",
            *(f"{subject}: {text}" for subject, text in caveats(results)),
        ],
    )


NOISY_SPREAD = 0.2
"""(slowest - fastest round) / median, above which times are called noisy."""
FEW_SEEDS, FEW_ROUNDS = 3, 3


def caveats(results: Results) -> list[tuple[str, str]]:
    """Return what a reader should know before trusting the results: subject and sentence, the gravest first."""
    records = results.records
    found = [("left out", f"{fault}.") for fault in results.faults]
    failures = [item for part in results.parts for item in part.stored.failures.items()]
    found += [("no result", f"{cell}: {failure.error}.") for cell, failure in failures]
    found += clock_caveats(results)
    if dev := {record.task for record in records if record.dev_as_test}:
        found.append(("dev as test", f"{', '.join(sorted(dev))}: not the numbers of the GLUE server."))
    if "live_disagreements" in results.knobs and (differ := int(results.knobs["live_disagreements"].sum())):
        found.append(("live differs", f"{differ} live exits or answers differ from the replay."))
    if without := [task for (task, _), full in results.tasks["full_label"].items() if full is None]:
        found.append(("no full model", f"{', '.join(without)}: nothing to compare with."))
    seeds = results.knobs.groupby(["task", "label"])["seed"].nunique().groupby("task").min()
    if few := [str(task) for task, number in seeds.items() if number < FEW_SEEDS]:
        words = f"fewer than {FEW_SEEDS} on {', '.join(few)}: intervals hold little of the noise of training."
        found.append(("few seeds", words))
    cut = {r.task: r.truncated_prompts for r in records if isinstance(r, GenerationRecord) and r.truncated_prompts}
    found += [("prompts cut", f"{count} of {task}.") for task, count in cut.items()]
    if changed := sum(bool(record.environment.get("uncommitted_changes")) for record in records):
        found.append(("local changes", f"{changed} of {len(records)} records were made with uncommitted changes."))
    return found


def clock_caveats(results: Results) -> list[tuple[str, str]]:
    """Return what a reader should know of the times."""
    times, timed = results.times, {(timing.task, timing.backbone) for timing in results.timings}
    if not timed:
        return [("not timed", "no times were taken.")]
    found = []
    if missing := [task for task, backbone in results.tasks.index if (task, backbone) not in timed]:
        found.append(("not timed", f"{', '.join(missing)}."))
    if any(timing.rounds < FEW_ROUNDS for timing in results.timings):
        found.append(("few rounds", "some times are of fewer than three rounds, which show no spread."))
    rounds = times.groupby(["timing", "key", "knob", "batch_size", "in_flight"], dropna=False)["seconds"]
    spread = (rounds.max() - rounds.min()) / rounds.median()
    if noisy := int((spread > NOISY_SPREAD).sum()):
        words = f"{noisy} of {len(spread)} clocks spread over more than {100 * NOISY_SPREAD:.0f}%"
        found.append(("noisy timing", f"{words}, at most {100 * spread.max():.0f}%."))
    for timing in results.timings:
        load, cores = timing.environment_before.get("load_average"), timing.environment_before.get("cores_usable")
        cores = cores or results.records[0].environment.get("cores_usable")
        # Half above the number of cores is left by a training on all of them that has just ended.
        if isinstance(load, list) and load and isinstance(cores, int) and load[0] > cores + 0.5:
            where = f"{timing.task}, seed {timing.seed}"
            found.append(("busy machine", f"{where}: a load average of {load[0]:g} on {cores} cores before timing."))
    return found


def check_times(results: Results) -> list[str]:
    """Return a line that names the first fault of the times; none if they have no fault or nothing was timed."""
    found = [f"Check the times: {text}" for subject, text in clock_caveats(results) if subject != "not timed"]
    return found[:1]
