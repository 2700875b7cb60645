"""Commands for what users bring: methods, tasks and backbones of their own."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.application import app, examples, finish
from benchmarks.cli.arguments import DataOption, ParametersOption, found_methods, parsed_parameters, several
from benchmarks.terminal import output_console

command = partial(app.command, rich_help_panel="Your own")


@command(
    "new-method",
    epilog=examples("consistentee new-method early-gate", "consistentee new-method EarlyGate --out methods/gate.py"),
)
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: early-gate, EarlyGate.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write.", show_default="early_gate.py here")] = None,
) -> None:
    """Write a working method with a learned exit head in one file, to make your own from."""
    from benchmarks.commands.new_method import next_steps, write_method

    print(next_steps(write_method(name, out)))


@command(
    "check-method",
    epilog=examples(
        "consistentee check-method mine.py:Mine",
        "consistentee check-method deebert --families bert mpnet",
        "consistentee check-method free --families llama gpt2",
        "Exit codes: 0 all checks pass, 1 the contract is broken, 2 the method cannot be loaded.",
    ),
)
def check_method(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="file.py:Class, file.py, folder/, or a registered name.")
    ],
    *,
    families: Annotated[list[str] | None, several("--families", "Encoder or decoder families.", shown="all")] = None,
    param: ParametersOption = None,
) -> None:
    """Put a method under the contract on tiny models, in less than a minute: what fails, and where to look."""
    from benchmarks.testing.check_method import check_method as check
    from consistentee.methods.method import get_method

    passed = True
    for name in found_methods([method]) or []:
        report = check(name, get_method(name, **parsed_parameters(param)), families, progress=True)
        output_console().print(report.table())
        passed &= report.passed
    finish(not passed)


@command(
    "check-task",
    epilog=examples(
        "consistentee check-task tickets.yaml",
        "consistentee check-task mcid --data DATA",
        "Exit codes: 0 nothing spoils the scores, 1 something does, 2 there is no such task.",
    ),
)
def check_task(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's YAML file, or its name.")],
    *,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Measure lengths in its tokens.", show_default="in words")
    ] = None,
    data: DataOption = None,
) -> None:
    """Read every row of a task: sizes, labels, lengths, leakage between splits; what is wrong, in plain words."""
    from benchmarks.tasks.check import check_task as check, report_tables

    report = check(task, data, backbone)
    output_console().print(report_tables(report))
    finish(bool(report.errors))


@command(
    "check-backbone",
    epilog=examples(
        "consistentee check-backbone minilm-l6",
        "consistentee check-backbone path/to/my-encoder",
        "Exit codes: 0 all checks pass, 1 something is wrong with it, 2 there is no such backbone.",
    ),
)
def check_backbone(
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="A name of the catalogue, a directory, or a hub id.")
    ],
) -> None:
    """Check on real weights what must hold of a pretrained encoder before methods are compared on it."""
    from benchmarks.testing.check_backbone import check_backbone as check

    report = check(backbone, progress=True)
    output_console().print(report.table())
    finish(not report.passed)
