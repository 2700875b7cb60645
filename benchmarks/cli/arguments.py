"""What words of the command line stand for: lists, numbers, parameters, folders, methods."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consistentee.errors import UserError


def listed(values: Sequence[str] | None) -> list[str] | None:
    """Split values at commas, each of them once; None stays None: the suite's own choice."""
    if values is None:
        return None
    names = dict.fromkeys(name.strip() for value in values for name in value.split(","))
    return [name for name in names if name]


def chosen(values: Sequence[str] | None, option: str) -> list[str] | None:
    """Return what an option lists, see :func:`listed`. Raises UserError for an option that lists nothing."""
    names = listed(values)
    if names == []:
        raise UserError(f"{option} names nothing; leave it out for all")
    return names


def found_methods(methods: Sequence[str] | None) -> list[str] | None:
    """Return the methods of the command line, those of files and folders included; say what cannot be used."""
    names = listed(methods)
    if names is None:
        return None
    from benchmarks.commands.plugins import usable_methods

    found = usable_methods(names)
    for file, reason in found.unavailable:
        print(f"unavailable: {file}: {reason}", file=sys.stderr)
    return found.names


def labels_of_methods(methods: Sequence[str] | None) -> list[str] | None:
    """Return what methods of the command line are called in results."""
    names = listed(methods)
    if names is None:
        return None
    from benchmarks.commands.plugins import labels_of

    return labels_of(names)


def parsed_seeds(values: Sequence[str] | None) -> list[int] | None:
    """Return seeds as numbers. Raises UserError for anything else, and for none."""
    names = chosen(values, "--seeds")
    if names is None:
        return None
    try:
        seeds = list(dict.fromkeys(map(int, names)))
    except ValueError as error:
        raise UserError(f"--seeds takes whole numbers: {error}") from error
    if min(seeds) < 0:
        raise UserError(f"--seeds takes whole numbers of at least 0, got {min(seeds)}")
    return seeds


def parsed_shares(values: Sequence[str]) -> list[float]:
    """Return tolerated risks as numbers. Raises UserError for anything else."""
    try:
        return [float(name) for name in listed(values) or []]
    except ValueError as error:
        raise UserError(f"--risk takes numbers: {error}") from error


def parsed_parameters(values: Sequence[str] | None, option: str = "--param") -> dict[str, Any]:
    """Turn ``key=value`` pairs into parameters; values are read as YAML, so ``0.05`` is a number and ``true`` a bool.

    Raises UserError for anything else.
    """
    import yaml

    parameters = {}
    for pair in values or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{option} takes key=value, got {pair!r}")
        try:
            parameters[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{option} {key}: {value!r} is not a value") from error
    return parameters


def existing_data(data: Path | None) -> Path | None:
    """Return the data directory. Raises UserError where there is none."""
    if data is not None and not data.is_dir():
        raise UserError(f"no such data directory: {data} (from --data or CONSISTENTEE_DATA)")
    return data


def results_folder(out: Path) -> Path:
    """Return the folder to write results to. Raises UserError where a file is in its place."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return out
