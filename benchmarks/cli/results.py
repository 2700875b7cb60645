"""Commands that show results: tables, figures, the report, a paper beside them, the leaderboard."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.application import app, examples, finish
from benchmarks.cli.arguments import (
    BackbonesOption,
    DataOption,
    TasksOption,
    WorkersOption,
    labels_of_methods,
    results_folder,
)
from benchmarks.terminal import RESULTS_WIDTH, output_console

command = partial(app.command, rich_help_panel="See results")

OnlyMethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", metavar="A B ...", help="Only these, by label, file.py:Class or folder/ (and the full model)."
    ),
]

ResultsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a run, such as runs/quick, or published results.")
]


@command(
    epilog=examples(
        "consistentee table runs/quick",
        "consistentee table runs/quick --format latex > table.tex",
        "consistentee table results/cpu-6-layers --published --format md",
    )
)
def table(
    results: ResultsArgument,
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv|latex|all|long", help="Write and print this format.")
    ] = None,
    methods: OnlyMethodsOption = None,
    published: Annotated[bool, typer.Option("--published", help="With the figures that papers print.")] = False,
) -> None:
    """Show the results of a run; with --format, also write them: table.md, .csv, .tex (or published.md, ...).

    md: one page; all, latex: every table; csv: a line an operating point; long: a line a cell and knob.

    Tables of some --methods are printed and not written: the files are of all.
    """
    from benchmarks.analysis import paper_tables, rendering, tables
    from benchmarks.analysis.frames import load_results

    labels = labels_of_methods(methods)
    found = load_results(results, labels)
    if table_format is None:
        shown = paper_tables.published_tables(found) if published else tables.terminal_tables(found)
        output_console(RESULTS_WIDTH).print(rendering.to_terminal(shown, found.faults))
        return
    text = (paper_tables.render_published if published else tables.render)(found, table_format)
    print(text, end="")
    if labels is not None:
        print(f"of some methods: printed, and not written into {results}", file=sys.stderr)
        return
    path = results / f"{'published' if published else 'table'}{tables.FORMATS[table_format][0]}"
    tables.write_text(path, text)
    print(f"written to {path}", file=sys.stderr)


@command(
    epilog=examples(
        "consistentee reproduce",
        "consistentee reproduce consistentee-glue",
        "consistentee reproduce pabee-glue --format csv > pabee.csv",
        "consistentee reproduce deebert-glue --dry-run --data DATA",
        "consistentee reproduce consistentee-glue --run --backbones bert-base-uncased",
        "Without --run nothing is trained: ours are published results and those of earlier --run.",
    )
)
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A table's name, or its YAML file; without, all are listed.")
    ] = None,
    *,
    backbones: BackbonesOption = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            metavar="DIR ...",
            help="Folders of ours; each curve is of the first that has it.",
            show_default="runs/NAME, results/SUITE",
        ),
    ] = None,
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv|latex", help="Write and print this format.")
    ] = None,
    run_missing: Annotated[bool, typer.Option("--run", help="First run what is missing, see `run`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what --run would do, and how long.")] = False,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of what --run trains.", show_default="runs/NAME")
    ] = None,
    workers: WorkersOption = 1,
) -> None:
    """Set a paper's table beside ours: the same tasks at the printed speed-ups, with intervals and what differs."""
    from benchmarks.commands import reproduce as papers

    if name is None:
        output_console().print(papers.inventory())
        return
    reproduction = papers.Reproduction.of(name, backbones, out=results_folder(out), results=results)
    if dry_run:
        print("\n".join(reproduction.plan(data, workers)))
        return
    failed = reproduction.run(data, workers) if run_missing else []
    comparisons, faults = reproduction.comparisons()
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    if table_format is None:
        output_console(RESULTS_WIDTH).print(papers.for_terminal(comparisons))
    else:
        path = reproduction.write(comparisons, table_format)
        print(path.read_text(encoding="utf-8"), end="")
        print(f"written to {path}", file=sys.stderr)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    finish(bool(failed))


@command(
    epilog=examples(
        "consistentee plot runs/quick",
        "consistentee plot results/cpu-6-layers --format pdf --tasks mcid rte --methods consistentee deebert static",
    )
)
def plot(
    results: ResultsArgument,
    methods: OnlyMethodsOption = None,
    tasks: TasksOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the figures.", show_default="DIR; of some methods or tasks DIR/selected"),
    ] = None,
    figure_format: Annotated[
        str, typer.Option("--format", metavar="png|pdf|svg", help="Of the files; letters are embedded.")
    ] = "png",
) -> None:
    """Draw the figures of a results folder with their captions: points at equal cost, curves, exit layers, ....

    Those of some --methods or --tasks go to its folder selected: the figures of all keep their places.
    """
    from benchmarks.analysis.figures import write_figures
    from benchmarks.analysis.frames import load_results

    labels = labels_of_methods(methods)
    found = load_results(results, labels, tasks)
    folder = results if labels is None and tasks is None else results / "selected"
    paths, missing = write_figures(found, results_folder(out) or folder, file_format=figure_format)
    for path in paths:
        print(path)
    for line in missing:
        print(f"not drawn: {line}", file=sys.stderr)


@command(epilog=examples("consistentee report runs/quick"))
def report(results: ResultsArgument) -> None:
    """Write report.html: headline, curves to explore, exits, provenance and warnings; it needs no network."""
    from benchmarks.analysis.frames import load_results
    from benchmarks.analysis.report import write_report

    print(write_report(load_results(results), results))


@command(
    epilog=examples(
        "consistentee leaderboard runs/quick",
        "consistentee leaderboard results/cpu-6-layers results/cpu-12-layers --format md > leaderboard.md",
    )
)
def leaderboard(
    results: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Results folders, of this machine and of others.")
    ],
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv|latex", help="Print this format.")
    ] = None,
) -> None:
    """Compare the methods of several results folders at equal cost; recipes are never mixed."""
    from benchmarks.analysis.rendering import to_terminal
    from benchmarks.analysis.tables import leaderboard_tables, load_leaderboard, render_leaderboard

    found = load_leaderboard(results)
    if table_format is None:
        output_console(RESULTS_WIDTH).print(to_terminal(leaderboard_tables(found), found.faults))
        return
    print(render_leaderboard(found, table_format), end="")
    for fault in found.faults:
        print(f"left out: {fault}", file=sys.stderr)


@command(epilog=examples("consistentee verify runs/quick", "consistentee verify results/quick"))
def verify(results: ResultsArgument) -> None:
    """Check all files of a results folder: schemas, hashes, keys, rows, stages, leftovers; name every fault."""
    from benchmarks.commands.verify import faults_of

    faults = list(faults_of(results))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        raise typer.Exit(2)
    print(f"{results}: everything is as it was written")
