"""Suites by name or file, of any kind; and the cells they stand for."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.specs.base import BaseCellSpec, BaseSuite, GenerationSuite, MethodEntry, SuiteSpec, short_name
from benchmarks.specs.schema import TABLES, load_named, yaml_files
from consistentee.arguments import Texts, checked
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import available_methods

SUITES_DIR = Path(__file__).parents[1] / "suites"
_WITH_PATHS = ("tasks", "task_overrides", "backbones", "methods")


@checked
@dataclass(frozen=True)
class Filters:
    """The part of a suite to run; None keeps the suite's own choice, and all of its cells."""

    tasks: Texts | None = None
    methods: Texts | None = None
    backbones: Texts | None = None
    seeds: Sequence[int] | None = None


def list_suites() -> dict[str, Path]:
    """Return the suites that come with the package: name -> file."""
    return yaml_files(SUITES_DIR)


@checked
def load_suite(name_or_path: str | Path) -> BaseSuite:
    """Read a suite, by its name or as the path of a YAML file; relative paths in it start at its folder, if they exist.

    Raises UserError for an unknown name, and for a file that is not a valid suite (the field is named).
    """

    def prepare(fields: dict[str, Any]) -> dict[str, Any]:
        folder = Path(name_or_path).parent
        return {name: _resolved(folder, value) if name in _WITH_PATHS else value for name, value in fields.items()}

    # An unknown kind is left to SuiteSpec, which names it as a fault.
    return load_named(
        "suite",
        name_or_path,
        list_suites(),
        lambda fields: GenerationSuite if fields.get("kind") == "generation" else SuiteSpec,
        prepare,
    )


def _resolved(folder: Path, value: Any) -> Any:
    """Resolve the paths in a value of a suite (tasks, methods, backbones) that are relative to ``folder``."""
    if isinstance(value, Mapping):
        return {_resolved(folder, key): _resolved(folder, item) for key, item in value.items()}
    if not isinstance(value, str):
        return [_resolved(folder, item) for item in value] if isinstance(value, list) else value
    file = Path(value.rpartition(":")[0] if ".py:" in value else value)
    is_path = file.suffix in (".yaml", ".yml", ".py", *TABLES) or (folder / file / "config.json").is_file()
    if file.is_absolute() or not is_path or not (folder / file).exists():
        return value
    return f"{os.path.relpath(folder / file)}{value[len(str(file)) :]}"


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
            if (label := found[0].label) != name and label in {*registered, *(entry.label for entry in suite.methods)}:
                raise UserError(f"{name} is called {label!r}, as another method is; change its `name`")
        if not found:
            other = SuiteSpec if suite.kind == "generation" else GenerationSuite
            if name in available_methods(other.method_group):
                kind = other.cell_class.kind
                raise UserError(f"{name} is a method of {kind}, and suite {suite.name!r} is of {suite.kind}")
            raise unknown_name("method", name, {*registered, *(entry.label for entry in suite.methods)})
        chosen += [entry for entry in found if entry not in chosen]
    return chosen


def by_name(items: Iterable[str], name_of: Callable[[str], str]) -> dict[str, str]:
    """Return tasks, backbones or methods by the names that records have of them. Raises UserError if two have one."""
    found: dict[str, str] = {}
    for item in items:
        if (other := found.setdefault(name_of(item), item)) != item:
            raise UserError(f"{other} and {item} are both called {name_of(item)!r}; change one `name`, or its folder's")
    return found


def _name_of_task(task: str) -> str:
    return Path(task).stem if Path(task).suffix.lower() in TABLES else short_name(task)


def expand(suite: BaseSuite, filters: Filters | None = None) -> list[BaseCellSpec]:
    """Return the cells of a suite, narrowed by ``filters``: all methods of one (task, backbone, seed) in a row.

    Tasks may be named as in the suite or by their own names. Raises UserError if two of them have the same name.
    """
    filters = filters or Filters()
    methods = select_methods(suite, filters.methods)
    known = by_name(suite.tasks, _name_of_task)
    backbones = suite.backbones if filters.backbones is None else filters.backbones
    by_name(backbones, short_name)
    tasks = suite.tasks if filters.tasks is None else [known.get(_name_of_task(task), task) for task in filters.tasks]
    return [
        suite.cell(entry, task=task, backbone=backbone, seed=seed, parameters=parameters)
        for task in tasks
        for backbone in backbones
        for seed in (suite.seeds_for(task) if filters.seeds is None else filters.seeds)
        for entry in methods
        if filters.methods is not None or entry.tasks is None or task in entry.tasks
        for parameters in entry.combinations()
    ]
