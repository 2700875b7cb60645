"""Keys of results: the parts a key is made of, and which of them differ.

A key covers settings, rows, weights, and the versions that people raise: see docs/versions.md. The code itself, the
commit and the libraries are recorded with a result and never compared. The version of a method is read from its
source: nothing is imported, so that planning a run loads no torch.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from benchmarks.specs.base import BaseCellSpec, TimingSpec
from benchmarks.specs.method_files import parsed, source_of, stated_value
from benchmarks.specs.schema import canonical_json
from benchmarks.store.records import BaseRecord, KeyParts
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods
from consistentee.versions import ENGINE_VERSION, TIMING_VERSION, TRAINING_VERSION, Kind

_PROJECT = Path(__file__).parents[2]
_PACKAGES = ("consistentee", "baselines", "benchmarks")
_ABSENT = "none"


def key_parts(spec: BaseCellSpec, rows: str, backbone: dict[str, object]) -> KeyParts:
    """Collect everything that a cell's results depend on.

    Settings at their defaults are left out, so that a new setting makes no result stale; whoever changes a default
    raises a version. Labels, names of backbones and places of task files change no key; the hash of the rows covers
    the name that a task gives itself. ``rows`` is the hash of the rows used.
    """
    settings = spec.model_dump(mode="json", exclude_defaults=True, exclude={"label", "backbone", *spec.names_of_rows})
    return KeyParts(
        kind=spec.kind,
        settings={**settings, "method": spec.method.rpartition(".py:")[2]},
        rows=rows,
        backbone=backbone,
        method_version=method_version(spec.method),
        engine_version=ENGINE_VERSION[spec.kind],
        training_version=TRAINING_VERSION,
    )


def timing_key(protocol: TimingSpec, kind: Kind) -> str:
    """Return the key of a timing: of how it is taken. What was timed is in its contenders."""
    parts = [protocol.model_dump(mode="json", exclude_defaults=True), kind, TIMING_VERSION[kind]]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Return a hash of this project's code, to be recorded: it identifies results of the very same code."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_PROJECT / package).rglob("*.py")):
            digest.update(path.relative_to(_PROJECT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def stale_reason(record: BaseRecord, wanted: KeyParts) -> str | None:
    """Describe which parts of a record's key differ from the wanted ones; None if none does."""
    return None if record.key == wanted.key else "; ".join(differences(record.key_parts, wanted))


def differences(recorded: KeyParts, wanted: KeyParts) -> list[str]:
    """Describe which parts of a key differ, one phrase each: ``recipe.epochs was 3, is 4``."""
    before, after = (dict(_flat(parts.model_dump(mode="json"))) for parts in (recorded, wanted))
    return [
        _phrase(name, before.get(name, _ABSENT), after.get(name, _ABSENT), str(wanted.settings["method"]))
        for name in sorted(before.keys() | after.keys())
        if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]


def _phrase(name: str, before: object, after: object, method: str) -> str:
    if name == "rows":
        return "the rows of the task are others"
    if name.startswith("backbone."):
        return f"the backbone is another ({name.removeprefix('backbone.').removeprefix('files.')})"
    if name == "method_version" and not (isinstance(before, int) and isinstance(after, int)):
        return f"the file of {method} has changed, or a method that it derives from"
    if name.endswith("_version"):
        what = method if name == "method_version" else f"the {name.removesuffix('_version')}"
        return f"the version of {what} was {before}, is {after}"
    return f"{name.removeprefix('settings.')} was {before}, is {after}"


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# ---------------------------------------------------------------------------------------------- versions of methods


@cache
def method_version(name: str) -> int | str:
    """Return the version of a method: its class's own; or of a user's file, where nobody raises one, a hash of it.

    Comments, docstrings and formatting of a file do not count; the version of an installed method that it derives from
    does. Raises UserError for what cannot be read or found.
    """
    if ".py:" in name:
        file, _, class_name = name.rpartition(":")
        code, inherited = _hash_of_code(Path(file)), _stated_version(Path(file), class_name)
        return code if inherited is None else f"{code}-{inherited}"
    methods = available_methods(ENTRY_POINT_GROUP) | available_methods(TOKEN_ENTRY_POINT_GROUP)
    if name not in methods:
        raise unknown_name("method", name, methods)
    module, class_name = methods[name].module, methods[name].attr
    found = _stated_version(source_of(module), class_name)
    if found is None:
        raise UserError(f"{name}: no class {class_name} that states a version is found in the source of {module}")
    return found


def _stated_version(path: Path | None, class_name: str) -> int | None:
    found = stated_value(path, class_name, "version", inherited=True)
    return found if isinstance(found, int) else None


def _hash_of_code(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such method file: {path}")
    tree = parsed(path)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
