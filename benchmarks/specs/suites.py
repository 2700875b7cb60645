"""Suites by name or file, of any kind; and the cells they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.specs.base import BaseCellSpec, BaseSuite, MethodEntry, SuiteSpec, load_named
from benchmarks.specs.generation import GenerationSuite
from consistentee.arguments import Texts, checked
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, MethodGroup, available_methods

SUITES_DIR = Path(__file__).parents[1] / "suites"
_METHOD_GROUPS: dict[str, MethodGroup] = {"classification": ENTRY_POINT_GROUP, "generation": TOKEN_ENTRY_POINT_GROUP}


@checked
@dataclass(frozen=True)
class Filters:
    """The part of a suite to run; None keeps the suite's own choice."""

    tasks: Texts | None = None
    methods: Texts | None = None
    backbones: Texts | None = None
    seeds: Sequence[int] | None = None


def list_suites() -> dict[str, Path]:
    """Return the suites that come with the package: name -> file."""
    return {path.stem: path for path in sorted(SUITES_DIR.glob("*.yaml"))}


@checked
def load_suite(name_or_path: str | Path) -> BaseSuite:
    """Read a suite, by its name or as the path of a YAML file.

    Raises UserError for an unknown name, and for a file that is not a valid suite (the field is named).
    """
    # An unknown kind is left to SuiteSpec, which names it as a fault.
    return load_named(
        "suite",
        name_or_path,
        list_suites(),
        lambda fields: GenerationSuite if fields.get("kind") == "generation" else SuiteSpec,
    )


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
