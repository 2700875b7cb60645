"""The figures that papers print, as quoted in ``benchmarks/published``, and which of our names theirs are."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

_FOLDER = files("benchmarks") / "published"


class Names(BaseModel):
    """``names.yaml``: what printed names mean here; the lists hold what has no counterpart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: dict[str, str]
    unmapped_methods: list[str]
    tasks: dict[str, str]
    unmapped_tasks: list[str]
    splits: dict[str, str]
    speedup_definitions: dict[str, str]


@dataclass(frozen=True)
class PublishedResult:
    """One printed figure; values and speed-ups are quoted, not converted.

    Attributes:
        source, table, url: where it stands.
        method, backbone, task, metric: as printed.
        value: the score, in percent, or a difference where ``metric`` says so.
        speedup, speedup_definition: as printed, in the source's own meaning; may be empty.
    """

    source: str
    table: str
    method: str
    backbone: str
    task: str
    metric: str
    value: str
    speedup: str
    speedup_definition: str
    url: str


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Read all printed figures, in the order of the file."""
    text = (_FOLDER / "results.csv").read_text(encoding="utf-8")
    stripped = ({name: value.strip() for name, value in row.items()} for row in csv.DictReader(text.splitlines()))
    return tuple(PublishedResult(**row) for row in stripped)


@cache
def names() -> Names:
    """Read the mapping of names."""
    return Names.model_validate(yaml.safe_load((_FOLDER / "names.yaml").read_text(encoding="utf-8")))


def published_for(task: str, method: str) -> list[PublishedResult]:
    """Return what is printed for one of our tasks and one of our methods."""
    mapping = names()
    return [
        result
        for result in published_results()
        if mapping.tasks.get(result.task) == task and mapping.methods.get(result.method) == method
    ]
