"""Keys of results: the parts a key is made of, and which of them differ.

A key covers settings, rows, weights, and the versions that people raise: see docs/versions.md. The code itself, the
commit and the libraries are recorded beside a result and never compared.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from benchmarks.specs.base import BaseCellSpec, TimingSpec, label_of
from benchmarks.specs.schema import canonical_json
from benchmarks.store.method_versions import method_version
from benchmarks.store.records import KeyParts
from consistentee.versions import ENGINE_VERSION, TIMING_VERSION, TRAINING_VERSION, Kind

_PROJECT = Path(__file__).parents[2]
_PACKAGES = ("consistentee", "baselines", "benchmarks")
_ABSENT = "none"


def key_parts(spec: BaseCellSpec, rows: str, backbone: dict[str, object]) -> KeyParts:
    """Return all that a cell's results depend on.

    Settings that stand at their defaults are left out, so that a setting which is new makes no result stale; whoever
    changes a default raises a version. Labels and names of backbones change no key, nor does where a task's file lies;
    the name that a task gives itself is in the hash of its rows.

    Args:
        spec: the cell.
        rows: hash of the rows used.
        backbone: what identifies it, see :attr:`benchmarks.kinds.kind.Kind.backbone_identity`.
    """
    settings = spec.model_dump(mode="json", exclude_defaults=True, exclude={"label", "backbone", *spec.names_of_rows})
    return KeyParts(
        kind=spec.kind,
        settings={**settings, "method": label_of(spec.method)},
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
    """Return a hash of this project's code, to be recorded: it tells which results were made by the very same code."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_PROJECT / package).rglob("*.py")):
            digest.update(path.relative_to(_PROJECT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


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
