"""Suites by name or file, of any kind; and the cells they stand for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.specs.base import BaseCellSpec, BaseSuite, Group, MethodEntry, SuiteSpec, load_named
from benchmarks.specs.generation import GenerationSuite
from consistentee.arguments import Positive, Texts, checked
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, MethodGroup, available_methods

SUITES_DIR = Path(__file__).parents[1] / "suites"
_METHOD_GROUPS: dict[str, MethodGroup] = {"classification": ENTRY_POINT_GROUP, "generation": TOKEN_ENTRY_POINT_GROUP}


@checked
@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``parts`` of a run, as a job of a cluster. Raises UserError unless it lies in 1..parts."""

    number: Positive
    parts: Positive

    def __post_init__(self) -> None:
        if self.number > self.parts:
            raise UserError(f"there is no part {self.number} of {self.parts}; the first is 1/{self.parts}")

    def has(self, groups: Sequence[Group], cell: int) -> bool:
        """Return whether cell number ``cell`` is of this part; ``groups`` are those of all cells.

        Cells of one group share stages of training and stay together, while there are as many groups as parts.
        """
        distinct = list(dict.fromkeys(groups))
        place = distinct.index(groups[cell]) if len(distinct) >= self.parts else cell
        return place % self.parts == self.number - 1


@checked
@dataclass(frozen=True)
class Filters:
    """The part of a suite to run; None keeps the suite's own choice, and all of its cells."""

    tasks: Texts | None = None
    methods: Texts | None = None
    backbones: Texts | None = None
    seeds: Sequence[int] | None = None
    shard: Shard | None = None


def list_suites() -> dict[str, Path]:
    """Return the suites that come with the package: name -> file."""
    return {path.stem: path for path in sorted(SUITES_DIR.glob("*.yaml"))}


@checked
def load_suite(name_or_path: str | Path) -> BaseSuite:
    """Read a suite, by its name or as the path of a YAML file; relative paths in it start at its folder, if they exist.

    Raises UserError for an unknown name, and for a file that is not a valid suite (the field is named).
    """
    # An unknown kind is left to SuiteSpec, which names it as a fault.
    suite: BaseSuite = load_named(
        "suite",
        name_or_path,
        list_suites(),
        lambda fields: GenerationSuite if fields.get("kind") == "generation" else SuiteSpec,
    )
    folder = Path(name_or_path).parent
    methods = [entry.model_copy(update={"method": _beside(folder, entry.method)}) for entry in suite.methods]
    files = {
        "tasks": tuple(_beside(folder, task) for task in suite.tasks),
        "task_overrides": {_beside(folder, task): override for task, override in suite.task_overrides.items()},
        "backbones": tuple(_beside(folder, backbone) for backbone in suite.backbones),
        "methods": tuple(methods),
    }
    return suite.model_copy(update=files)


def _beside(folder: Path, name: str) -> str:
    """Return ``name`` as seen from here, if it is the path of a task, a method or a backbone from ``folder``."""
    file = Path(name.rpartition(":")[0] if ".py:" in name else name)
    is_path = file.suffix in (".yaml", ".yml", ".py") or (folder / file / "config.json").is_file()
    if file.is_absolute() or not is_path or not (folder / file).exists():
        return name
    return f"{os.path.relpath(folder / file)}{name[len(str(file)) :]}"


def select_methods(suite: BaseSuite, names: Sequence[str] | None) -> list[MethodEntry]:
    """Return the suite's entries of these labels; of a method's name that is no label here, all entries of the method.

    A name that the suite lacks but that is registered, or ``path/to/file.py:Class``, is added with its defaults.
    """
    if names is None:
        return list(suite.methods)
    chosen: list[MethodEntry] = []
    registered = available_methods(suite.method_group)
    for name in names:
        labelled = [entry for entry in suite.methods if entry.label == name]
        found = labelled or [entry for entry in suite.methods if entry.method == name]
        if not found and (".py:" in name or name in registered):
            found = [MethodEntry.model_validate(name)]
        if not found:
            for kind, group in _METHOD_GROUPS.items():
                if kind != suite.kind and name in available_methods(group):
                    raise UserError(f"{name} is a method of {kind}, and suite {suite.name!r} is of {suite.kind}")
            raise unknown_name("method", name, {*registered, *(entry.label for entry in suite.methods)})
        chosen += [entry for entry in found if entry not in chosen]
    return chosen


def expand(suite: BaseSuite, filters: Filters | None = None) -> list[BaseCellSpec]:
    """Return the cells of a suite, narrowed by ``filters``: all methods of one (task, backbone, seed) in a row."""
    filters = filters or Filters()
    methods = select_methods(suite, filters.methods)
    return [
        suite.cell(entry, task=task, backbone=backbone, seed=seed, parameters=parameters)
        for task in (suite.tasks if filters.tasks is None else filters.tasks)
        for backbone in (suite.backbones if filters.backbones is None else filters.backbones)
        for seed in (suite.seeds_for(task) if filters.seeds is None else filters.seeds)
        for entry in methods
        for parameters in entry.combinations()
    ]
