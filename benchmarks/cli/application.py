"""The command: one group, options that take several words, errors as one sentence and an exit code, shared options."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from consistentee.errors import UserError, printable
from consistentee.extras import check_extra

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

_CLICK_ERROR: type[Any] = typer.BadParameter.__mro__[2]  # of the click that Typer carries

_OF_ALL_COMMANDS = {"--debug": 0, "--device": 1, "--threads": 1}  # and how many words follow


class Commands(TyperGroup):
    """The group of all commands: options may take several words, and errors become one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, normalised(args, self.commands))

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Exit codes: 2 for errors that the user can fix, 130 for Ctrl-C, 1 for anything else."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the reader of a pipe went away: Typer ends quietly
            raise
        except (Exception, KeyboardInterrupt) as error:
            code, message = _explained(error)
            if ctx.params.get("debug"):
                traceback.print_exc()
            print(printable(" ".join(message.split()), longest=2_000), file=sys.stderr)
            raise typer.Exit(code) from error


def _explained(error: BaseException) -> tuple[int, str]:
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, _CLICK_ERROR):
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        return 2, f"error: {message} (add --help to see the arguments)"
    if isinstance(error, OSError) and error.filename:  # cannot be read or written
        return 2, f"error: {error.filename}: {error.strerror}"
    if isinstance(error, KeyboardInterrupt):
        return 130, str(error) or "interrupted"
    return 1, f"error: {type(error).__name__}: {error} (add --debug to see where)"


def normalised(args: Sequence[str], commands: Mapping[str, Any]) -> list[str]:
    """Return arguments as the parser takes them.

    ``--tasks a b,c`` becomes ``--tasks a --tasks b --tasks c`` for the options of ``commands`` whose value is a list,
    which take all words up to the next option. ``--debug``, ``--device`` and ``--threads`` may stand anywhere.
    Arguments after ``--`` stay as they are.
    """
    end = args.index("--") if "--" in args else len(args)
    words, of_all = list(args[:end]), []
    for option, values in _OF_ALL_COMMANDS.items():
        while option in words:
            place = words.index(option)
            of_all += words[place : place + 1 + values]
            del words[place : place + 1 + values]
    command = next((word for word in words if not word.startswith("-")), "")
    options = commands[command].params if command in commands else ()
    several = {name for option in options if getattr(option, "multiple", False) for name in option.opts}
    spread: list[str] = []
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word if word in several else ""
        if not option or word == option:
            spread.append(word)
            continue
        for value in [word] if "=" in word else filter(None, re.split(r",(?! )", word)):  # "2x, any task" is one
            spread += [value] if spread[-1] == option else [option, value]
    return [*of_all, *spread, *args[end:]]


app = typer.Typer(
    name="consistentee",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="The reference benchmark for early exiting in language models: train, measure and compare methods.",
    epilog="Examples: `consistentee run quick`, `consistentee table runs/quick`, `consistentee doctor`.\n\n"
    "Exit codes: 0 done, 1 something failed, 2 an error that you can fix, 130 interrupted.",
)


class BenchCommand(TyperCommand):
    """A command that needs the extra ``bench``, and says so before it does anything."""

    def invoke(self, ctx: Any) -> Any:
        check_extra("bench", f"`consistentee {ctx.info_name}`")
        return super().invoke(ctx)


_BENCH_PANELS = ("Run a suite", "See results")


def command(panel: str, *lines: str, **settings: Any) -> Callable[[_FunctionT], _FunctionT]:
    """Add a command to a panel of ``--help``; its own help ends with ``lines``, an example each."""
    if panel in _BENCH_PANELS:
        settings["cls"] = BenchCommand
    return app.command(rich_help_panel=panel, epilog="\n\n".join(["Examples:", *lines]), **settings)


def _show_version(wanted: bool) -> None:
    if wanted:
        from consistentee import __version__

        print(f"consistentee {__version__}")
        raise typer.Exit


_DEVICE_HELP = "Device of the models; also CONSISTENTEE_DEVICE. auto: an accelerator, if there is one."


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:1|mps", help=_DEVICE_HELP)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; also OMP_NUM_THREADS.")] = None,
) -> None:
    # By the environment, so that the processes of a run see them too; torch is not loaded yet.
    if device is not None:
        os.environ["CONSISTENTEE_DEVICE"] = device
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)


# ---------------------------------------------------------------------------------------------- shared options


def several(option: str, help_text: str, metavar: str = "A B ...", **settings: Any) -> Any:
    """Return a typer option that takes several words, with spaces or commas between them; repeats are dropped."""
    return typer.Option(option, metavar=metavar, help=help_text, callback=_unique, **settings)


def _unique(values: list[Any] | None) -> list[Any] | None:
    return None if values is None else list(dict.fromkeys(values))


def out_folder(help_text: str, shown: str | bool = True) -> Any:
    """Return the option of a folder to write; a file in its place is refused."""
    return typer.Option("--out", file_okay=False, help=help_text, show_default=shown)


def parsed_parameters(values: Sequence[str] | None, option: str = "--param") -> dict[str, Any]:
    """Turn ``key=value`` pairs into parameters; values are read as YAML. Raises UserError for anything else."""
    import yaml

    from benchmarks.specs.schema import read_yaml

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


_DATA_HELP = "Folder with data files, searched before packages and the hub."
DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="CONSISTENTEE_DATA", exists=True, file_okay=False, help=_DATA_HELP)
]
TasksOption = Annotated[list[str] | None, several("--tasks", "Only these tasks.")]
MethodsOption = Annotated[list[str] | None, several("--methods", "Only these labels, file.py:Class or folder/.")]
BackbonesOption = Annotated[list[str] | None, several("--backbones", "Catalogue names, directories or hub ids.")]
ParametersOption = Annotated[list[str] | None, several("--param", "Parameters of the method.", "KEY=VALUE ...")]
KnobOption = Annotated[float | None, typer.Option(help="Value of the knob; by default the one stored with the model.")]
AllowCodeOption = Annotated[bool, typer.Option("--allow-code", help="Run the method's own file, if you trust it.")]
