"""Where the numbers come from: machines, versions, commits, commands."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.analysis.tables.columns import seeds_text
from benchmarks.analysis.tables.text import MISSING, TextTable
from benchmarks.store.records import BaseRecord


def machine(environment: Mapping[str, Any], *, with_commit: bool = True) -> str:
    """Describe the machine of a record in one line, from what was recorded of it."""
    libraries = environment.get("libraries") or {}
    threads = (environment.get("threads") or {}).get("torch")
    commit = environment.get("commit") if with_commit else None
    parts = [
        *(environment.get("gpus") or []),
        environment.get("cpu"),
        f"{environment['cores_usable']} usable cores" if environment.get("cores_usable") else None,
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        environment.get("os"),
        f"Python {environment['python']}" if environment.get("python") else None,
        *(f"{name} {libraries[name]}" for name in ("torch", "transformers") if libraries.get(name)),
        f"commit {commit[:10]}{' with changes' if environment.get('uncommitted_changes') else ''}" if commit else None,
    ]
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def machines_table(records: Sequence[BaseRecord]) -> TextTable:
    """Return the machines on which the records were made, and from how many commits."""
    by_machine: dict[str, list[BaseRecord]] = {}
    for record in records:
        by_machine.setdefault(machine(record.environment, with_commit=False), []).append(record)
    commits = {str(record.environment.get("commit") or MISSING)[:10] for record in records}
    return TextTable(
        title="Provenance",
        headings=("machine", "records", "commits", "first", "last"),
        cells=tuple(
            (
                name,
                str(len(found)),
                str(len({record.environment.get("commit") for record in found})),
                min(record.finished_at for record in found)[:10],
                max(record.finished_at for record in found)[:10],
            )
            for name, found in by_machine.items()
        ),
        notes=(
            f"{len(records)} records of {len({record.task for record in records})} tasks; "
            f"{seeds_text({record.seed for record in records})}; "
            f"{'all from commit ' + next(iter(commits)) if len(commits) == 1 else f'from {len(commits)} commits'}. "
            "The report names the command, commit and key of every record.",
            *_mixed_precisions(records),
        ),
        words=("machine", "first", "last"),
    )


def _mixed_precisions(records: Sequence[BaseRecord]) -> list[str]:
    """Say, in one line, on which tasks the methods that are compared were not all trained in one precision."""
    precisions: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.training_precision is not None:
            precisions.setdefault((record.task, record.backbone), set()).add(record.training_precision)
    mixed = [f"{task} · {backbone}" for (task, backbone), found in precisions.items() if len(found) > 1]
    return [f"Trained in float32 and in bfloat16, by what was faster: records of {', '.join(mixed)}."] if mixed else []


def records_table(records: Sequence[BaseRecord]) -> TextTable:
    """Return where every record comes from: its key, commit, time and command."""
    return TextTable(
        title="Records",
        headings=(
            "task",
            "backbone",
            "method",
            "parameters",
            "seed",
            "train s",
            "finished",
            "commit",
            "key",
            "command",
        ),
        cells=tuple(
            (
                record.task,
                record.backbone,
                record.label,
                ", ".join(f"{name}={value}" for name, value in sorted(record.parameters.items())) or "defaults",
                str(record.seed),
                f"{record.train_seconds:.0f}",
                record.finished_at[:19].replace("T", " "),
                str(record.environment.get("commit") or MISSING)[:10],
                record.key[:12],
                record.command,
            )
            for record in records
        ),
        notes=("Keys are hashes of what a result depends on, see docs/versions.md; here their first 12 characters.",),
        words=("task", "backbone", "method", "parameters", "finished", "commit", "key", "command"),
    )
