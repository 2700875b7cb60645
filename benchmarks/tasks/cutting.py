"""The three splits: which rows of train become a split that the source does not have."""

import math
import random
from collections.abc import Mapping, Sequence

from benchmarks.tasks.base_spec import Cut
from consistentee.data.instances import Label
from consistentee.errors import UserError

SPLITS = ("train", "validation", "test")


def refuse_empty(rows: Mapping[str, Sequence[object]], task: str, source: str) -> None:
    """Raise UserError where a split has no rows."""
    for name, split in rows.items():
        if not split:
            raise UserError(f"task {task!r}: the {name} split is empty ({source})")


def cut_rows(labels: Sequence[Label], cut: Cut, name: str, task: str) -> tuple[list[int], list[int]]:
    """Return the rows that stay in train and those that are taken, drawn at random with the cut's seed.

    Every label keeps its share, and a row in train. Raises UserError where train has too few rows.
    """
    groups: dict[Label, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    sizes = shares({label: len(rows) for label, rows in groups.items()}, cut.size(len(labels)))
    generator = random.Random(cut.seed)
    taken = {row for label in sorted(groups) for row in generator.sample(groups[label], sizes[label])}
    if not taken:
        raise UserError(f"task {task!r}: train has too few rows ({len(labels)}) to cut a {name} split from it")
    return [row for row in range(len(labels)) if row not in taken], sorted(taken)


def shares(counts: dict[Label, int], size: int) -> dict[Label, int]:
    """Divide ``size`` rows among groups in proportion (largest remainders first), leaving each group at least one."""
    total = sum(counts.values())
    exact = {label: size * count / total for label, count in counts.items()}
    whole = {label: math.floor(share) for label, share in exact.items()}
    by_remainder = sorted(counts, key=lambda label: (whole[label] - exact[label], label))
    for label in by_remainder[: size - sum(whole.values())]:
        whole[label] += 1
    return {label: min(share, counts[label] - 1) for label, share in whole.items()}
