"""Keys of results: the parts a key is made of, and which of them differ.

A key covers settings, rows, weights, and the versions that people raise: see docs/versions.md. The code itself, the
commit and the libraries are recorded with a result and never compared.
"""

import hashlib
from functools import cache
from pathlib import Path

import pandas as pd

from benchmarks.specs.base import BaseCellSpec, TimingSpec
from benchmarks.specs.method_files import method_version
from benchmarks.specs.schema import hash_value
from benchmarks.store.records import KeyParts
from consistentee.versions import ENGINE_VERSION, TIMING_VERSION, TRAINING_VERSION, TaskKind

_PROJECT = Path(__file__).parents[2]
_PACKAGES = ("consistentee", "baselines", "benchmarks")
_ABSENT = "none"
_LONGEST_SHOWN = 120  # characters of two values; shorter than two hashes
_HASHED = {"rows": "the rows of the task", "method_version": "the method's file"}


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


def timing_key(protocol: TimingSpec, kind: TaskKind) -> str:
    """Return the key of a timing: of how it is taken. What was timed is in its record."""
    return hash_value([protocol.model_dump(mode="json", exclude_defaults=True), kind, TIMING_VERSION[kind]])


@cache
def code_hash() -> str:
    """Return a hash of this project's code, to be recorded: it identifies results of the very same code."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_PROJECT / package).rglob("*.py")):
            digest.update(path.relative_to(_PROJECT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def stale_reason(recorded: KeyParts, wanted: KeyParts) -> str:
    """Describe which parts of a key differ, such as ``recipe.epochs was 3, is 4``; empty if none does."""
    if recorded.key == wanted.key:
        return ""
    flat = (pd.json_normalize(parts.model_dump(mode="json")).to_dict("records") for parts in (recorded, wanted))
    (before,), (after,) = flat
    names = [name for name in sorted(before | after) if before.get(name, _ABSENT) != after.get(name, _ABSENT)]
    phrases = []
    for name in names:
        what, old, new = name.removeprefix("settings."), before.get(name, _ABSENT), after.get(name, _ABSENT)
        is_hash = len(f"{old}{new}") > _LONGEST_SHOWN
        phrases.append(f"{_HASHED.get(name, what)} changed" if is_hash else f"{what} was {old}, is {new}")
    return "; ".join(phrases)
