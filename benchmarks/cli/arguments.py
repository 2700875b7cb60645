"""Options that several commands have, and the values that words of the command line stand for."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from consistentee.errors import UserError


def listed(values: Sequence[str] | None) -> list[str] | None:
    """Split values at commas and drop repeats; None stays None."""
    if values is None:
        return None
    names = dict.fromkeys(name.strip() for value in values for name in value.split(","))
    return [name for name in names if name]


def several(option: str, help_text: str, metavar: str = "A B ...", shown: str | bool = True) -> Any:
    """Return a typer option that takes several words; see :func:`chosen`."""
    return typer.Option(option, metavar=metavar, help=help_text, show_default=shown, callback=_chosen)


def _chosen(parameter: typer.CallbackParam, values: list[str] | None) -> list[str] | None:
    names = listed(values)
    if names == []:
        raise UserError(f"{parameter.opts[0]} names nothing; leave it out for all")
    return names


def numbers(option: str, values: Sequence[str] | None, kind: type[Any] = int) -> list[Any] | None:
    """Return listed values as numbers of a ``kind``. Raises UserError for anything else, and for one below 0."""
    wanted = f"{option} takes {'whole ' * (kind is int)}numbers"
    try:
        found = None if values is None else list(dict.fromkeys(map(kind, listed(values) or [])))
    except ValueError as error:
        raise UserError(f"{wanted}: {error}") from error
    if found and not min(found) >= 0:
        raise UserError(f"{wanted} of at least 0, got {min(found)}")
    return found


def parsed_parameters(values: Sequence[str] | None, option: str = "--param") -> dict[str, Any]:
    """Turn ``key=value`` pairs into parameters; values are read as YAML, so ``0.05`` is a number and ``true`` a bool.

    Raises UserError for anything else.
    """
    import yaml

    from benchmarks.yaml_files import read_yaml

    parameters = {}
    for pair in values or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{option} takes key=value, got {pair!r}")
        try:
            parameters[key] = read_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"{option} {key}: {value!r} is not a value") from error
    return parameters


def found_methods(methods: Sequence[str] | None) -> list[str] | None:
    """Return the methods of the command line, with those of files and folders; print which cannot be used."""
    if methods is None:
        return None
    from benchmarks.commands.plugins import usable_methods

    found = usable_methods(listed(methods) or [])
    for file, reason in found.unavailable:
        typer.echo(f"unavailable: {file}: {reason}", err=True)
    return found.names


def labels_of_methods(methods: Sequence[str] | None) -> list[str] | None:
    """Return the labels that methods of the command line have in results."""
    if methods is None:
        return None
    from benchmarks.commands.plugins import labels_of

    return labels_of(listed(methods) or [])


def results_folder(out: Path | None) -> Path | None:
    """Return the folder to write results to. Raises UserError where a file is in its place."""
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return out


def _existing_data(data: Path | None) -> Path | None:
    if data is not None and not data.is_dir():
        raise UserError(f"no such data directory: {data} (from --data or CONSISTENTEE_DATA)")
    return data


_data_option = partial(
    typer.Option,
    "--data",
    envvar="CONSISTENTEE_DATA",
    help="Folder with data files; looked into before packages and the hub.",
)

DataOption = Annotated[Path | None, _data_option(callback=_existing_data)]
UncheckedDataOption = Annotated[Path | None, _data_option()]
TasksOption = Annotated[list[str] | None, several("--tasks", "Only these tasks; several words, or with commas.")]
BackbonesOption = Annotated[list[str] | None, several("--backbones", "Catalogue names, directories or hub ids.")]
ParametersOption = Annotated[
    list[str] | None, typer.Option("--param", metavar="KEY=VALUE ...", help="Parameters of the method.")
]
KnobOption = Annotated[
    float | None, typer.Option("--knob", help="Value of the method's knob.", show_default="chosen in training")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", metavar="N", min=1, help="Cells that run at once on this machine.")
]
